"""Readiness of this replica, and the checks that decide it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Literal, NamedTuple

import structlog

from app.callers.service_key_directory import ServiceKeyDirectory
from app.errors import (
    EncryptionError,
    InternalError,
    KeyDenied,
    KeyUnavailable,
    StoreMisconfigured,
    VaultError,
    WritesUnavailable,
)
from app.security.encryption_service import EncryptionService
from app.security.kms.key_service import KeyService
from app.single_flight import AsyncSingleFlight, SharedCall

CACHE_SECONDS: Final = 1.0
CHECK_TIMEOUT_SECONDS: Final = 3.0
TIMEOUT: Final = "timeout"  # code of a check that does not answer in time
PROBE_SECONDS: Final = 10.0
PROBE_SECONDS_WHILE_DOWN: Final = 2.0
BELIEVED_FAILURES: Final = 2
_PROBE_CONTEXT: Final = {"user_id": "readiness", "service": "pulseplan", "data_type": "auth_token"}
_log = structlog.get_logger()

Check = Callable[[], Awaitable[None]]  # raises if it fails
CheckState = Literal["up", "degraded", "down"]


class CheckFailure(NamedTuple):
    """Reason that a check failed, for the log; `degraded` if the replica still does part of its work."""

    code: str
    detail: str
    degraded: bool = False


class Readiness:
    """Runs all checks together and remembers the outcome for `cache_seconds`.

    The probe needs no service key, so each check runs at most once in that time. A failed check is `down`, or
    `degraded` if `tolerated` lists the error's code for it, or if the store can be read but takes no writes: the
    replica still does part of its work. The codes in `tolerated_later` are tolerated once the check has been up or had
    a failure in `tolerated`: before that, nothing shows that this replica can do any of its work. Failures are logged
    when they change and are not part of the answer.
    `on_states` receives the states after each run.
    """

    def __init__(
        self,
        *,
        checks: Mapping[str, Check],
        tolerated: Mapping[str, frozenset[str]] | None = None,
        tolerated_later: Mapping[str, frozenset[str]] | None = None,
        on_states: Callable[[Mapping[str, CheckState]], None] | None = None,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self._checks = checks
        self._tolerated = {name: set((tolerated or {}).get(name, ())) for name in checks}
        self._tolerated_later = dict(tolerated_later or {})  # without the checks that have been up
        self._on_states = on_states
        self._cache_seconds = cache_seconds
        self._failures: dict[str, CheckFailure | None] = {}
        self._fresh_until = float("-inf")
        self._checking = asyncio.Lock()
        self._refreshing: asyncio.Task[dict[str, CheckState]] | None = None

    async def states(self) -> dict[str, CheckState]:
        """Return the state of each check; the replica is ready if none is `down`."""
        async with self._checking:
            if time.monotonic() >= self._fresh_until:
                await self._run_checks()
                self._fresh_until = time.monotonic() + self._cache_seconds
                if self._on_states is not None:
                    self._on_states(self._states())
            return self._states()

    def refresh(self) -> None:
        """Start the checks if their outcome is old, without waiting; `on_states` receives the result."""
        if time.monotonic() >= self._fresh_until and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self.states())

    async def close(self) -> None:
        """Cancel the run that `refresh` started."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    def _states(self) -> dict[str, CheckState]:
        return {name: self._state(name) for name in self._checks}

    def _state(self, name: str) -> CheckState:
        failure = self._failures[name]
        if failure is None:
            return "up"
        return "degraded" if failure.degraded or failure.code in self._tolerated[name] else "down"

    async def _run_checks(self) -> None:
        failures = await asyncio.gather(*(_failure_of(check) for check in self._checks.values()))
        for name, failure in zip(self._checks, failures, strict=True):
            if failure != self._failures.get(name):
                if failure is None:
                    _log.info("check_recovered", check=name)
                else:
                    _log.error("check_failed", check=name, code=failure.code, reason=failure.detail)
            self._failures[name] = failure
            if failure is None or failure.code in self._tolerated[name]:
                self._tolerated[name] |= self._tolerated_later.pop(name, frozenset())


async def _failure_of(check: Check) -> CheckFailure | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except TimeoutError:
        return CheckFailure(TIMEOUT, "no answer in time")
    except VaultError as error:
        return CheckFailure(error.code, error.detail, degraded=isinstance(error, WritesUnavailable))
    except Exception as error:  # noqa: BLE001  a check that breaks has failed; its text may hold a secret
        return CheckFailure("internal", type(error).__name__)
    return None


def service_keys_check(directory: ServiceKeyDirectory) -> Check:
    """Return a check that fails if the service-keys file cannot be used."""

    async def check() -> None:
        if directory.problem is not None:
            raise StoreMisconfigured(directory.problem)

    return check


def encryption_check(encryption: EncryptionService, *, keys_are_remote: bool) -> Check:
    """Return the self-test of the primary. If a remote key is unavailable, `kms_check` fails instead."""

    async def check() -> None:
        try:
            await asyncio.to_thread(encryption.self_test)
        except (KeyUnavailable, KeyDenied):
            if not keys_are_remote:
                raise

    return _BackgroundCheck(check, every_seconds=PROBE_SECONDS) if keys_are_remote else check


def kms_check(kms: KeyService) -> Check:
    """Return a check of KMS. Only its first caller ever waits for KMS."""
    return _BackgroundCheck(KmsCheck(kms=kms))


class KmsCheck:
    """Requests a data key from KMS, as a write does: every ten seconds at most, every two while KMS is down.

    After a success, a single transient failure is ignored.
    """

    def __init__(self, *, kms: KeyService, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._kms = kms
        self._monotonic = monotonic
        self._next_probe_at = float("-inf")
        self._problem: EncryptionError | None = None
        self._failures = 0
        self._succeeded = False

    async def __call__(self) -> None:
        if self._monotonic() >= self._next_probe_at:
            await self._probe()
        if self._problem is not None:
            raise self._problem.copy()

    async def _probe(self) -> None:
        try:
            await asyncio.to_thread(self._kms.generate_data_key, _PROBE_CONTEXT)
        except EncryptionError as error:
            self._failures += 1
            if not self._succeeded or not error.retryable or self._failures >= BELIEVED_FAILURES:
                self._problem = error
        else:
            self._failures, self._problem, self._succeeded = 0, None, True
        pause = PROBE_SECONDS_WHILE_DOWN if self._failures else PROBE_SECONDS
        self._next_probe_at = self._monotonic() + pause


class _BackgroundCheck:
    """Returns the last outcome of a check and runs the check again in the background, every `every_seconds` at most.

    Only callers before the first outcome wait. So a key service that hangs does not delay the probe of a replica that
    works without it.
    """

    def __init__(self, check: Check, *, every_seconds: float = 0.0) -> None:
        self._check = check
        self._every_seconds = every_seconds
        self._next_run_at = float("-inf")
        self._runs: AsyncSingleFlight[None] = AsyncSingleFlight()
        self._error: VaultError | None = None
        self._answered = False

    async def __call__(self) -> None:
        if not self._answered or time.monotonic() >= self._next_run_at:
            run = self._runs.join("check", self._start)
            if not self._answered:
                await run.result()
        if self._error is not None:
            raise self._error.copy()

    def _start(self) -> SharedCall[None]:
        self._next_run_at = time.monotonic() + self._every_seconds
        return SharedCall(asyncio.create_task(self._run()))

    async def _run(self) -> None:
        try:
            await self._check()
            self._error = None
        except VaultError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001  a check that breaks has failed; its text may hold a secret
            self._error = InternalError(type(error).__name__)
        finally:
            self._answered = True
