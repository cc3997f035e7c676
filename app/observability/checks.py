"""What a replica checks to know whether it is ready."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from app.errors import EncryptionError, InternalError, KeyDenied, KeyUnavailable, StoreMisconfigured, VaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.callers.directory import ServiceKeyDirectory
    from app.security.encryption import EncryptionService
    from app.security.kms_client import KmsClient

PROBE_SECONDS = 10.0
PROBE_SECONDS_WHILE_DOWN = 2.0
BELIEVED_FAILURES = 2
_PROBE_CONTEXT = {"user_id": "readiness", "service": "pulseplan", "data_type": "auth_token"}


def encryption_check(encryption: EncryptionService, *, keys_are_remote: bool) -> Callable[[], Awaitable[None]]:
    """Return the self-test. Where keys are remote, their absence is the key service's failure and not this one's."""

    async def check() -> None:
        try:
            await asyncio.to_thread(encryption.self_test)
        except (KeyUnavailable, KeyDenied):
            if not keys_are_remote:
                raise

    return _LastOutcome(check, every_seconds=PROBE_SECONDS) if keys_are_remote else check


class _LastOutcome:
    """Answers with a check's last outcome and runs it again behind the caller's back; only the first caller waits.

    A key service that hangs must not make the probe of a replica hang that does without it. It is run again
    `every_seconds` at most, however often it is asked for.
    """

    def __init__(self, check: Callable[[], Awaitable[None]], *, every_seconds: float = 0.0) -> None:
        self._check = check
        self._every_seconds = every_seconds
        self._run_again_at = float("-inf")
        self._running: asyncio.Task[None] | None = None
        self._error: VaultError | None = None
        self._answered = False

    async def __call__(self) -> None:
        if self._running is None and time.monotonic() >= self._run_again_at:
            self._run_again_at = time.monotonic() + self._every_seconds
            self._running = asyncio.create_task(self._run())
        if not self._answered and self._running is not None:
            await asyncio.shield(self._running)
        if self._error is not None:
            raise type(self._error)(self._error.detail)

    async def _run(self) -> None:
        try:
            await self._check()
            self._error = None
        except VaultError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  a check that breaks has not passed; its text may be anybody's
            self._error = InternalError(type(error).__name__)
        finally:
            self._answered, self._running = True, None


def service_keys_check(directory: ServiceKeyDirectory) -> Callable[[], Awaitable[None]]:
    """Return a check of the service-keys file."""

    async def check() -> None:
        if directory.problem is not None:
            raise StoreMisconfigured(directory.problem)

    return check


class KmsCheck:
    """Asks KMS for a data key, which is what a write needs: every ten seconds at most, every two while it is down.

    `_LastOutcome` keeps its callers from waiting. A single failure that may pass is not believed after a success.
    """

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
        self._failures = 0
        self._succeeded = False

    async def __call__(self) -> None:
        if self._monotonic() >= self._probe_again_at:
            await self._ask()
        if self._problem is not None:
            raise type(self._problem)(self._problem.detail)

    async def _ask(self) -> None:
        try:
            await asyncio.to_thread(self._kms.generate_data_key, _PROBE_CONTEXT)
        except EncryptionError as error:
            self._failures += 1
            if not self._succeeded or not error.retryable or self._failures >= BELIEVED_FAILURES:
                self._problem = error
        else:
            self._failures, self._problem, self._succeeded = 0, None, True
        pause = PROBE_SECONDS_WHILE_DOWN if self._failures else PROBE_SECONDS
        self._probe_again_at = self._monotonic() + pause


def kms_check(kms: KmsClient) -> Callable[[], Awaitable[None]]:
    """Return a check of KMS that never makes a second caller wait."""
    return _LastOutcome(KmsCheck(kms=kms))
