"""Whether this replica can do its work."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal, NamedTuple

import structlog

from app.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = structlog.get_logger()
CACHE_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 3.0
TIMEOUT = "timeout"

State = Literal["up", "degraded", "down"]


class Problem(NamedTuple):
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
        on_states: Callable[[Mapping[str, State]], None] | None = None,
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self._checks = checks
        self._on_states = on_states
        self._refreshing: asyncio.Task[dict[str, State]] | None = None
        self._tolerated = tolerated or {}
        self._cache_seconds = cache_seconds
        self._problems: dict[str, Problem | None] = {}
        self._fresh_until = float("-inf")
        self._checking = asyncio.Lock()

    async def states(self) -> dict[str, State]:
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

    def _states(self) -> dict[str, State]:
        return {name: self._state(name) for name in self._checks}

    def _state(self, name: str) -> State:
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


async def _problem_of(check: Callable[[], Awaitable[None]]) -> Problem | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except TimeoutError:
        return Problem(TIMEOUT, "no answer in time")
    except VaultError as error:
        return Problem(error.code, error.detail)
    except Exception as error:  # noqa: BLE001  a check that breaks has not passed; its text may be anybody's
        return Problem("internal", type(error).__name__)
    return None
