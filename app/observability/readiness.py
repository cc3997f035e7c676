"""Readiness of this replica and the checks behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog

from app.callers.key_directory import ServiceKeyDirectory
from app.errors import EncryptionError, InternalError, KeyDenied, KeyUnavailable, StoreMisconfigured, VaultError
from app.security.service import EncryptionService

if TYPE_CHECKING:
    from app.security.kms.client import KmsClient


# --- Whether this replica can do its work.

_log = structlog.get_logger()
CACHE_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 3.0
TIMEOUT = "timeout"

CheckState = Literal["up", "degraded", "down"]


class CheckFailure(NamedTuple):
    """Why a check failed, for the log."""

    code: str
    detail: str


class Readiness:
    """Runs every check at once and remembers the answers for `cache_seconds`.

    A check that fails is `down`, or `degraded` where `tolerated` has the error's code for it: the replica can do its
    work all the same.

    The probe needs no key, so however often it is called each check runs at most once in that time. What is wrong is
    logged when it changes and is not part of the answer. `on_states` gets the states after each check.
    """

    def __init__(
        self,
        *,
        checks: Mapping[str, Callable[[], Awaitable[None]]],
        tolerated: Mapping[str, frozenset[str]] | None = None,
        on_states: Callable[[Mapping[str, CheckState]], None] | None = None,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self._checks = checks
        self._on_states = on_states
        self._refreshing: asyncio.Task[dict[str, CheckState]] | None = None
        self._tolerated = tolerated or {}
        self._cache_seconds = cache_seconds
        self._problems: dict[str, CheckFailure | None] = {}
        self._fresh_until = float("-inf")
        self._checking = asyncio.Lock()

    async def states(self) -> dict[str, CheckState]:
        """Return the state of each check; the replica is ready where none is `down`."""
        async with self._checking:
            if time.monotonic() >= self._fresh_until:
                await self._check_all()
                self._fresh_until = time.monotonic() + self._cache_seconds
                if self._on_states is not None:
                    self._on_states(self._states())
            return self._states()

    def refresh(self) -> None:
        """Have the checks run again where their answers are old, and do not wait for it: `on_states` is told."""
        if time.monotonic() >= self._fresh_until and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = asyncio.create_task(self.states())

    async def close(self) -> None:
        """Give up what `refresh` began."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    def _states(self) -> dict[str, CheckState]:
        return {name: self._state(name) for name in self._checks}

    def _state(self, name: str) -> CheckState:
        problem = self._problems[name]
        if problem is None:
            return "up"
        return "degraded" if problem.code in self._tolerated.get(name, ()) else "down"

    async def _check_all(self) -> None:
        problems = await asyncio.gather(*(_problem_of(check) for check in self._checks.values()))
        for name, problem in zip(self._checks, problems, strict=True):
            if problem != self._problems.get(name):
                if problem is None:
                    _log.info("check_recovered", check=name)
                else:
                    _log.error("check_failed", check=name, code=problem.code, reason=problem.detail)
            self._problems[name] = problem


async def _problem_of(check: Callable[[], Awaitable[None]]) -> CheckFailure | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except TimeoutError:
        return CheckFailure(TIMEOUT, "no answer in time")
    except VaultError as error:
        return CheckFailure(error.code, error.detail)
    except Exception as error:  # noqa: BLE001  a check that breaks has not passed; its text may be anybody's
        return CheckFailure("internal", type(error).__name__)
    return None


# --- What a replica checks to know whether it is ready.

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

    return _BackgroundCheck(check, every_seconds=PROBE_SECONDS) if keys_are_remote else check


class _BackgroundCheck:
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

    `_BackgroundCheck` keeps its callers from waiting. A single failure that may pass is not believed after a success.
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
    return _BackgroundCheck(KmsCheck(kms=kms))
