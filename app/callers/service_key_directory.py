"""The directory of service keys, which follows changes of the key file."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import structlog

from app.callers.service_key_file import read_private
from app.callers.service_keys import KeyListError, ServiceKey, hash_key, is_well_formed, parse_key_list
from app.errors import Unauthenticated

_log = structlog.get_logger()
RELOAD_SECONDS = 1.0
_NAMED = 5  # services in a warning
_NOBODY = ServiceKey(service="nobody", sha256="0" * 64, scopes=frozenset(), expires_at=datetime.min.replace(tzinfo=UTC))


class ServiceKeyDirectory:
    """The keys from `SERVICE_KEYS` and from the key file.

    At most once every `reload_seconds` the file's status is checked, and the file is read again if it has changed, so
    revoking a key needs no restart. An unknown key has it checked at once: it may have been created a moment ago. While
    the file is missing or invalid none of its keys is accepted: a typo in a revocation must not keep the revoked key
    alive. A key in both lists may do only what both entries permit.
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
        self._file_status: tuple[int, ...] | None = None  # of the file whose keys are in use
        self._status_seen: tuple[int, ...] | None = None  # also of an invalid one
        self._next_check = float("-inf")

    @property
    def problem(self) -> str | None:
        """The problem with the key file, or `None`."""
        self._reload_if_due()
        return self._problem

    def alive_services(self) -> list[str]:
        """Return the service of every live key, so a service with two keys twice."""
        return [key.service for key in self.alive_keys()]

    def alive_keys(self) -> list[ServiceKey]:
        """Return the live keys."""
        self._reload_if_due()
        return [key for key in self._keys.values() if key.is_alive()]

    def endless_keys(self) -> str | None:
        """Return a warning that names the services whose keys never expire, or `None`."""
        self._reload_if_due()
        services = sorted({key.service for key in self._keys.values() if key.expires_at is None})
        if not services:
            return None
        more = f" and {len(services) - _NAMED} more" if len(services) > _NAMED else ""
        names = ", ".join(services[:_NAMED]) + more
        return f"a stolen service key works for ever if it never expires: replace those of {names} by keys with an end"

    def identify(self, presented: str) -> ServiceKey:
        """Return the key's entry, or raise `Unauthenticated`.

        Keys are looked up by their SHA-256, so the time taken reveals nothing about the configured keys. Unknown,
        expired and malformed keys take the same steps, so the time does not distinguish them either. Then a well-formed
        one has the status of the file checked.
        """
        self._reload_if_due()
        key = self._find(presented)
        if not is_well_formed(presented):
            raise Unauthenticated("the service key is malformed")
        if key is None and self._file is not None and _status_of(self._file) != self._status_seen:
            self._reload(self._file)
            key = self._find(presented)
        if key is None:
            raise Unauthenticated("the service key is unknown or has expired")
        return key

    def _find(self, presented: str) -> ServiceKey | None:
        sha256 = hash_key(presented)
        key = self._keys.get(sha256, _NOBODY)
        matches = hmac.compare_digest(key.sha256, sha256)
        is_alive = key.is_alive(datetime.now(UTC))
        return key if matches and is_alive else None

    def _reload_if_due(self) -> None:
        now = self._monotonic()
        if self._file is None or now < self._next_check:
            return
        self._next_check = now + self._reload_seconds
        self._reload(self._file)

    def _reload(self, file: Path) -> None:
        try:
            self._status_seen = status = _status_of(file)
            if status == self._file_status is not None:
                return
            keys = parse_key_list(read_private(file))
        except OSError:
            self._refuse("the service keys file cannot be read")
        except KeyListError as error:
            self._refuse(f"the service keys file is invalid: {error}")
        else:
            in_file = {key.sha256: key for key in keys}
            both = {sha256: key.limited_by(in_file.get(sha256, key)) for sha256, key in self._fixed.items()}
            self._keys = {**in_file, **both}
            self._file_status, self._problem = status, None
            _log.info("service_keys_loaded", keys=len(keys))

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            _log.error("service_keys_refused", reason=problem)
        self._keys, self._problem, self._file_status = self._fixed, problem, None


def _status_of(file: Path) -> tuple[int, ...] | None:
    """Return what changes with the content, or `None` for a file that cannot be found."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
