"""Sweeps now and then while the service runs."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import structlog

from app.errors import VaultError
from app.rewrap.report import ReportedRows, SweepObserver, SweepReport
from app.rewrap.resealing_here import ResealerHere
from app.rewrap.sweep import Sweep, SweepPlan
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.repository import TokenRepository

ROWS_PER_SECOND: Final = 200.0
RETRY_SECONDS: Final = 30.0
CLOSING_SECONDS: Final = 5.0
_log = structlog.get_logger()


class BackgroundSweep:
    """Runs a gentle sweep every `interval_seconds`, give or take a fifth.

    Any number of replicas may do so at once: each row still moves once, and the pauses and the rows that they begin
    with differ so that they rarely meet. A row that cannot be read is counted by every sweep, and
    leaves a record of it once.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        interval_seconds: float,
        observer: SweepObserver | None = None,
    ) -> None:
        self._tokens = tokens
        self._resealer = ResealerHere(cipher=cipher)
        self._events = events
        self._interval_seconds = interval_seconds
        self._observer = observer or _Quiet()
        self._recorded = ReportedRows()
        self._sweep: Sweep | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first sweep comes after one interval."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; a sweep that is under way first finishes what it is writing."""
        if self._running is None:
            return
        if self._sweep is None:
            self._running.cancel()
        else:
            self._sweep.stop("the service is shutting down")
            await asyncio.wait([self._running], timeout=CLOSING_SECONDS)
            self._running.cancel()
        await asyncio.wait([self._running])

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds * random.uniform(0.8, 1.2))  # noqa: S311  spreads replicas out
            self._sweep = Sweep(
                tokens=self._tokens,
                resealer=self._resealer,
                events=self._events,
                observer=self._observer,
                plan=SweepPlan(rows_per_second=ROWS_PER_SECOND, patience_seconds=RETRY_SECONDS, scattered=True),
                recorded=self._recorded,
            )
            try:
                _log_report(await self._sweep.run())
            except VaultError as error:
                _log.error("sweep_failed", code=error.code, reason=error.detail)
            except Exception as error:  # noqa: BLE001  the next sweep must come all the same
                _log.error("sweep_failed", exc_info=error)
            stopped, self._sweep = self._sweep.stopped, None
            if stopped:
                return


class _Quiet:
    """Each row leaves its own event, so the sweep's own log says no more than how it ended."""

    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...


def _log_report(report: SweepReport) -> None:
    if report.due != 0 or report.remaining:
        _log.info(
            "swept",
            moved=report.moved,
            overtaken=report.overtaken,
            unreadable=report.unreadable.total(),
            remaining=report.remaining,
            stopped=report.stopped,
            seconds=round(report.seconds, 1),
        )
