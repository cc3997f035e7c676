"""Who is behind a service key, with a key file that may change at any time."""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from app.callers.service_keys import KeyListError, ServiceKey, hash_key, is_well_formed, parse_key_list
from app.errors import Unauthenticated

_log = structlog.get_logger()
RELOAD_SECONDS = 1.0
MAXIMUM_FILE_BYTES = 1024 * 1024
_NOBODY = ServiceKey(service="nobody", sha256="0" * 64, scopes=frozenset(), expires_at=datetime.min.replace(tzinfo=UTC))


class ServiceKeyDirectory:
    """The keys from the environment and from the key file.

    The file's state is looked at no more than once in `reload_seconds`, and read again when it has changed, so a
    revoked key stops without a restart. While the file is missing or broken none of its keys is valid: a typo in a
    revocation must not keep the revoked key alive.
    """

    def __init__(
        self,
        *,
        fixed: Iterable[ServiceKey] = (),
        file: Path | None = None,
        reload_seconds: float = RELOAD_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fixed = {key.sha256: key for key in fixed}
        self._file = file
        self._reload_seconds = reload_seconds
        self._monotonic = monotonic
        self._keys = self._fixed
        self._problem: str | None = None
        self._state: tuple[int, ...] | None = None
        self._look_again_at = float("-inf")

    @property
    def problem(self) -> str | None:
        """What is wrong with the key file, or `None`."""
        self._reload_if_due()
        return self._problem

    def alive_services(self) -> list[str]:
        """Return the service of every live key, once for each key."""
        self._reload_if_due()
        return [key.service for key in self._keys.values() if key.is_alive()]

    def identify(self, presented: str) -> ServiceKey:
        """Return the key's entry, or raise `Unauthenticated`.

        Keys are looked up by their SHA-256, so the time this takes says nothing about any configured key. Nor does it
        tell an unknown key from one that has expired or is malformed: each takes the same steps.
        """
        self._reload_if_due()
        sha256 = hash_key(presented)
        key = self._keys.get(sha256, _NOBODY)
        is_theirs = hmac.compare_digest(key.sha256, sha256)
        is_alive = key.is_alive(datetime.now(UTC))
        if not is_well_formed(presented):
            raise Unauthenticated("the service key is malformed")
        if not (is_theirs and is_alive):
            raise Unauthenticated("the service key is unknown or has expired")
        return key

    def _reload_if_due(self) -> None:
        now = self._monotonic()
        if self._file is None or now < self._look_again_at:
            return
        self._look_again_at = now + self._reload_seconds
        try:
            status = self._file.stat()
            state = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
            if state == self._state:
                return
            self._state = None
            keys = parse_key_list(_read(self._file))
        except OSError:
            self._refuse("the service keys file cannot be read")
        except KeyListError as error:
            self._refuse(f"the service keys file is broken: {error}")
        else:
            self._keys = {**{key.sha256: key for key in keys}, **self._fixed}
            self._state, self._problem = state, None
            _log.info("service_keys_loaded", keys=len(keys))

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            _log.error("service_keys_refused", reason=problem)
        self._keys, self._problem = self._fixed, problem


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size > MAXIMUM_FILE_BYTES:
            raise KeyListError("it is over 1 MiB")
        return file.read()
