"""Background sweeps in a running service."""

from __future__ import annotations

import asyncio
import random
from typing import Final

import structlog

from app.errors import VaultError
from app.rewrap.outcomes import ReportedRows
from app.rewrap.report import SilentObserver, SweepObserver, SweepReport
from app.rewrap.sweep import Sweep, SweepPlan
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.repository import TokenRepository

ROWS_PER_SECOND: Final = 200.0
RETRY_SECONDS: Final = 30.0
CLOSING_SECONDS: Final = 5.0
_log = structlog.get_logger()


class BackgroundSweep:
    """Runs a gentle sweep every `interval_seconds`, plus or minus 20 %.

    Any number of replicas may sweep at once: each row is rewrapped once, and random pauses and first rows keep them
    apart. Every sweep counts an unreadable row; only the first leaves an audit event.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        interval_seconds: float,
        rewrap_legacy: bool = False,
        observer: SweepObserver | None = None,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._interval_seconds = interval_seconds
        self._plan = SweepPlan(
            rows_per_second=ROWS_PER_SECOND, retry_seconds=RETRY_SECONDS, scattered=True, rewrap_legacy=rewrap_legacy
        )
        self._observer = observer or SilentObserver()
        self._audited = ReportedRows()
        self._sweep: Sweep | None = None
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first sweep starts after one interval."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; a running sweep first finishes the writes that it has sent."""
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
                cipher=self._cipher,
                events=self._events,
                observer=self._observer,
                plan=self._plan,
                audited=self._audited,
            )
            try:
                _log_report(await self._sweep.run())
            except VaultError as error:
                _log.error("sweep_failed", code=error.code, reason=error.detail)
            except Exception as error:  # noqa: BLE001  the next sweep must still run
                _log.error("sweep_failed", exc_info=error)
            stopped, self._sweep = self._sweep.stopped, None
            if stopped:
                return


def _log_report(report: SweepReport) -> None:
    """Log how a sweep ended; each row has an event of its own."""
    if report.due != 0 or report.remaining:
        _log.info(
            "swept",
            rewrapped=report.rewrapped,
            overtaken=report.overtaken,
            unreadable=report.unreadable.total(),
            remaining=report.remaining,
            stopped=report.stopped,
            seconds=round(report.seconds, 1),
        )
