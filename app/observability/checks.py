"""What a replica checks to know whether it is ready."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from app.errors import EncryptionError, KeyDenied, KeyUnavailable, StoreMisconfigured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.callers.directory import ServiceKeyDirectory
    from app.security.encryption import EncryptionService
    from app.security.kms_client import KmsClient

PROBE_SECONDS = 10.0
PROBE_SECONDS_WHILE_DOWN = 2.0
_PROBE_CONTEXT = {"user_id": "readiness", "service": "pulseplan", "data_type": "auth_token"}


def encryption_check(encryption: EncryptionService, *, keys_are_remote: bool) -> Callable[[], Awaitable[None]]:
    """Return the self-test. Where keys are remote, their absence is the key service's failure and not this one's."""

    async def check() -> None:
        try:
            await asyncio.to_thread(encryption.self_test)
        except (KeyUnavailable, KeyDenied):
            if not keys_are_remote:
                raise

    return check


def service_keys_check(directory: ServiceKeyDirectory) -> Callable[[], Awaitable[None]]:
    """Return a check of the service-keys file."""

    async def check() -> None:
        if directory.problem is not None:
            raise StoreMisconfigured(directory.problem)

    return check


class KmsCheck:
    """Asks KMS for a data key, which is what a write needs: every ten seconds at most, every two while it is down."""

    def __init__(
        self,
        *,
        kms: KmsClient,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kms = kms
        self._monotonic = monotonic
        self._probe_again_at = float("-inf")
        self._problem: EncryptionError | None = None

    async def __call__(self) -> None:
        if self._monotonic() >= self._probe_again_at:
            try:
                await asyncio.to_thread(self._kms.generate_data_key, _PROBE_CONTEXT)
                self._problem = None
            except EncryptionError as error:
                self._problem = error
            pause = PROBE_SECONDS if self._problem is None else PROBE_SECONDS_WHILE_DOWN
            self._probe_again_at = self._monotonic() + pause
        if self._problem is not None:
            raise type(self._problem)(self._problem.detail)
