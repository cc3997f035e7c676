"""The audit trail of one process, with bounds on time and memory."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from app.audit.chained_lines import Chain
from app.audit.refusal_limiter import RefusalLimiter
from app.audit.signing_key import AuditKey
from app.audit.targets import AuditTarget
from app.audit.writer import (
    FLUSH_SECONDS,
    RETRY_SECONDS,
    AuditCounters,
    AuditWriter,
    PendingEvent,
    PendingEvents,
    Sync,
)
from app.errors import AuditUnavailable
from app.tokens.events import INTENT, TokenEvent

BOUND_SECONDS: Final = 2.0
MAXIMUM_PENDING: Final = 10_000
_TICKS: Final = 10  # in the bound
_log = structlog.get_logger()


class SignedAuditTrail:
    """`AuditTrail` that signs and chains its lines, for use from one event loop.

    All events of one iteration of the loop go to the writer's thread together, and each caller continues once its event
    is written. A caller that has waited for `bound_seconds` is refused. From then on, and after a failed write, callers
    are refused at once until a write succeeds. The event of a refused caller may still be written.

    Only the time during which the event loop runs counts: a process that was stopped, or whose loop was blocked, says
    nothing about its disk.
    """

    def __init__(
        self,
        *,
        target: AuditTarget,
        chain: Chain,
        sync: Sync,
        counters: AuditCounters,
        previous_keys: Sequence[AuditKey] = (),
        bound_seconds: float = BOUND_SECONDS,
        flush_seconds: float = FLUSH_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._writer = AuditWriter(
            target=target,
            chain=chain,
            previous_keys=previous_keys,
            sync=sync,
            counters=counters,
            settle=self._settle_from_thread,
            flush_seconds=flush_seconds,
            retry_seconds=retry_seconds,
        )
        self._counters = counters
        self._bound_seconds = bound_seconds
        self._limiter = RefusalLimiter()
        self._gathered: PendingEvents = []
        self._handed_over: deque[tuple[float, PendingEvents]] = deque()  # each with its deadline, in `_running_time`
        self._tick_seconds = bound_seconds / _TICKS
        self._tick: asyncio.TimerHandle | None = None
        self._tick_at = 0.0
        self._stood_still_seconds = 0.0
        self._pending = 0
        self._slow = False
        self._closed = False

    async def open(self) -> None:
        """Begin the chain; if that fails or takes too long, the trail is unavailable until it succeeds."""
        self._writer.start()
        await asyncio.to_thread(self._writer.opened.wait, self._bound_seconds)

    def require_open(self) -> None:
        if self._is_unavailable():
            self._writer.refused += 1
            raise _unavailable()

    async def check(self) -> None:
        """Raise `AuditUnavailable` while events cannot be written; used by readiness."""
        if self._is_unavailable():
            raise _unavailable()

    async def append(self, event: TokenEvent) -> None:
        if (recorded := self._pend(event)) is not None:
            await recorded

    async def append_many(self, events: Sequence[TokenEvent]) -> None:
        if not self._has_room(len(events)):
            raise _unavailable()
        futures = [future for event in events if (future := self._pend(event)) is not None]
        for result in await asyncio.gather(*futures, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result

    async def append_refusal(self, event: TokenEvent) -> None:
        if self._is_unavailable():
            self._limiter.leave_out()
        else:
            await self.append(event)

    def _has_room(self, events: int) -> bool:
        if not self._closed and self._pending + events <= MAXIMUM_PENDING:
            return True
        self._writer.refused += events
        self._counters.audit_failure("closed" if self._closed else "full")
        return False

    def _pend(self, event: TokenEvent) -> asyncio.Future[None] | None:
        """Gather the event for the writer; return its future, or `None` if the limiter leaves it out."""
        if not self._limiter.admits(event):
            self._counters.audit_omitted()
            return None
        if not self._has_room(1):
            raise _unavailable()
        omitted = 0 if event.outcome == INTENT else self._limiter.take_omitted()
        pending = PendingEvent(time.time(), event, omitted, self._loop.create_future())
        if event.outcome == AuditUnavailable.code:  # the caller gets that error in any case, and need not wait
            pending.recorded.set_result(None)
        if not self._gathered:
            self._loop.call_soon(self._hand_over)
        self._gathered.append(pending)
        self._pending += 1
        return pending.recorded

    async def close(self) -> None:
        """Write the pending events and the end line, in bounded time."""
        if self._closed:
            return
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        self._writer.omitted = self._limiter.take_omitted()
        if self._gathered:
            self._hand_over()
        if not await asyncio.to_thread(self._writer.close, timeout_seconds=self._bound_seconds):
            _log.error("audit_not_ended", reason="the last lines could not be written in time")

    def _is_unavailable(self) -> bool:
        return self._slow or self._closed or self._writer.failure is not None

    def _hand_over(self) -> None:
        if group := self._gathered:
            self._gathered = []
            self._handed_over.append((self._running_time() + self._bound_seconds, group))
            if self._tick is None:
                self._start_tick()
            self._writer.put(group)

    def _running_time(self) -> float:
        """Return the loop's time without the time during which the loop did not run while events waited."""
        now = self._loop.time()
        if self._tick is not None and now - self._tick_at > self._tick_seconds:
            self._stood_still_seconds += now - self._tick_at
            self._tick_at = now
        return now - self._stood_still_seconds

    def _start_tick(self) -> None:
        self._tick_at = self._loop.time() + self._tick_seconds
        self._tick = self._loop.call_at(self._tick_at, self._refuse_overdue)

    def _refuse_overdue(self) -> None:
        now = self._running_time()
        self._tick = None
        for deadline, group in self._handed_over:
            if deadline > now:
                break
            self._refuse([one for one in group if not one.recorded.done()])
        if self._handed_over:
            self._start_tick()

    def _refuse(self, overdue: PendingEvents) -> None:
        if overdue and not self._slow:
            self._slow = True
            self._counters.audit_failure("slow")
            _log.error("audit_failed", reason="slow")
        self._writer.refused += len(overdue)
        for one in overdue:
            one.recorded.set_exception(_unavailable())

    def _settle_from_thread(self, groups: Sequence[PendingEvents], failure: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
            self._loop.call_soon_threadsafe(self._settle, groups, failure)

    def _settle(self, groups: Sequence[PendingEvents], failure: str | None) -> None:
        if self._slow and failure is None:
            _log.warning("audit_resumed", reason="slow")
        self._slow = False
        for group in groups:  # in the order in which they were handed over
            self._handed_over.popleft()
            self._pending -= len(group)
            for one in group:
                if failure is not None:
                    self._limiter.give_back(one.omitted)
                if one.recorded.done():  # the caller was cancelled or refused
                    continue
                if failure is None:
                    one.recorded.set_result(None)
                else:
                    self._writer.refused += 1
                    one.recorded.set_exception(_unavailable())
        if failure is None:
            self._writer.state_refused()


def _unavailable() -> AuditUnavailable:
    return AuditUnavailable("refused because the operation cannot be recorded in the audit trail")
