"""Whether this replica can do its work."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Literal

import structlog

from app.errors import VaultError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

_log = structlog.get_logger()
CACHE_SECONDS = 1.0
CHECK_TIMEOUT_SECONDS = 3.0


State = Literal["up", "degraded", "down"]


class Readiness:
    """Runs every check at once and remembers the answers for `cache_seconds`.

    A check that fails is `down`, or `degraded` where it is among `tolerated`: the replica can do its work without it.

    The probe needs no key, so however often it is called each check runs at most once in that time. What is wrong is
    logged when it changes and is not part of the answer.
    """

    def __init__(
        self,
        *,
        checks: Mapping[str, Callable[[], Awaitable[None]]],
        tolerated: frozenset[str] = frozenset(),
        cache_seconds: float = CACHE_SECONDS,
    ) -> None:
        self._checks = checks
        self._tolerated = tolerated
        self._cache_seconds = cache_seconds
        self._problems: dict[str, str | None] = {}
        self._fresh_until = float("-inf")
        self._checking = asyncio.Lock()

    async def states(self) -> dict[str, State]:
        """Return the state of each check; the replica is ready where none is `down`."""
        async with self._checking:
            if time.monotonic() >= self._fresh_until:
                await self._check_all()
                self._fresh_until = time.monotonic() + self._cache_seconds
            return {name: self._state(name) for name in self._checks}

    def _state(self, name: str) -> State:
        if self._problems[name] is None:
            return "up"
        return "degraded" if name in self._tolerated else "down"

    async def _check_all(self) -> None:
        problems = await asyncio.gather(*(_problem_of(check) for check in self._checks.values()))
        for name, problem in zip(self._checks, problems, strict=True):
            if problem != self._problems.get(name):
                if problem is None:
                    _log.info("check_recovered", check=name)
                else:
                    _log.error("check_failed", check=name, reason=problem)
            self._problems[name] = problem


async def _problem_of(check: Callable[[], Awaitable[None]]) -> str | None:
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            await check()
    except TimeoutError:
        return "no answer in time"
    except VaultError as error:
        return f"{error.code}: {error.detail}"
    except Exception as error:  # noqa: BLE001  a check that breaks has not passed; its text may be anybody's
        return f"internal: {type(error).__name__}"
    return None
