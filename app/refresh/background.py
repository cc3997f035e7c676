"""Background refresh: tokens are refreshed before anybody needs them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Final

import structlog

from app.concurrency import all_of
from app.errors import VaultError
from app.refresh.rounds import RefreshRounds, RoundPlan, RoundReport

BACKGROUND_SERVICE: Final = "background-refresh"
_LONGEST_PAUSE: Final = 1.2  # intervals between two rounds
_log = structlog.get_logger()


class BackgroundRefresh:
    """Starts a round for each provider's name every `interval_seconds`, plus or minus 20 %, on each replica.

    A round that is still running is not started again, and no name waits for another's.
    """

    def __init__(self, *, rounds: RefreshRounds, interval_seconds: float) -> None:
        self._rounds = rounds
        self._interval_seconds = interval_seconds
        self._ticking: asyncio.Task[None] | None = None
        self._running: dict[tuple[str, bool], asyncio.Task[int]] = {}

    def start(self) -> None:
        """Begin; the first rounds start after one interval."""
        self._ticking = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Begin no more refreshes; those in progress are the refresher's."""
        tasks = [task for task in (self._ticking, *self._running.values()) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def run_once(self) -> int:
        """Run one round of each kind to its end; return how many tokens were refreshed."""
        return sum(await all_of(self._round(name, failed=failed) for name, failed in self._kinds()))

    async def _tick(self) -> None:
        while True:
            spread = random.uniform(2 - _LONGEST_PAUSE, _LONGEST_PAUSE)  # noqa: S311  spreads replicas out
            await asyncio.sleep(self._interval_seconds * spread)
            for name, failed in self._kinds():
                running = self._running.get((name, failed))
                if running is None or running.done():
                    self._running[name, failed] = asyncio.create_task(self._round(name, failed=failed))

    def _kinds(self) -> Iterator[tuple[str, bool]]:
        return ((name, failed) for name in self._rounds.names() for failed in (False, True))

    async def _round(self, name: str, *, failed: bool) -> int:
        report = RoundReport()
        try:
            plan = RoundPlan(lead_seconds=_LONGEST_PAUSE * self._interval_seconds, failed=failed)
            await self._rounds.run(name, plan, report)
        except VaultError as error:
            _log.error("background_refresh_failed", provider=name, code=error.code, reason=error.detail)
        except Exception as error:  # noqa: BLE001  the next round must still run
            _log.error("background_refresh_failed", provider=name, exc_info=error)
        if report.refreshed:
            _log.info("refreshed_in_background", provider=name, refreshed=report.refreshed)
        return report.refreshed
