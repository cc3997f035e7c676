"""The audit trail as the vault sees it: bounded in time and in room."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

import structlog

from app.audit.keys import AuditKey
from app.audit.lines import Chain
from app.audit.refusal_limiter import RefusalLimiter
from app.audit.target import AuditTarget
from app.audit.writer import FLUSH_SECONDS, RETRY_SECONDS, AuditCounters, AuditWriter, Entries, Entry, Sync
from app.errors import AuditUnavailable
from app.tokens.events import TokenEvent

BOUND_SECONDS: Final = 2.0
MAXIMUM_WAITING: Final = 10_000
_log = structlog.get_logger()


class AuditLog:
    """`AuditTrail` of one process, used from one event loop.

    An event is handed to the writer's thread together with the others of the same turn of the loop, and its caller
    goes on once it is kept. Whoever has waited for two seconds is refused; from then on, and while the last write
    failed, everybody is refused at once, until a write shows that it goes on. What was refused may still be written.
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
        self._flood = RefusalLimiter()
        self._gathering: Entries = []
        self._handed_over: deque[tuple[float, Entries]] = deque()  # with the time until which they may wait
        self._watching: asyncio.TimerHandle | None = None
        self._waiting = 0
        self._slow = False
        self._closed = False

    async def open(self) -> None:
        """Begin the chain; where that fails or takes too long, the trail is unavailable until it succeeds."""
        self._writer.start()
        await asyncio.to_thread(self._writer.opened.wait, self._bound_seconds)

    def require_open(self) -> None:
        if self._slow or self._closed or self._writer.failure is not None:
            self._writer.refused += 1
            raise _unavailable()

    async def check(self) -> None:
        """Raise `AuditUnavailable` while events cannot be kept; for readiness."""
        if self._slow or self._closed or self._writer.failure is not None:
            raise _unavailable()

    async def append(self, event: TokenEvent) -> None:
        if not self._flood.admits(event):
            self._counters.audit_omitted()
            return
        if self._closed or self._waiting >= MAXIMUM_WAITING:
            self._writer.refused += 1
            self._counters.audit_failure("closed" if self._closed else "full")
            raise _unavailable()
        entry = Entry(time.time(), event, self._flood.take_omitted(), self._loop.create_future())
        if not self._gathering:
            self._loop.call_soon(self._hand_over)
        self._gathering.append(entry)
        self._waiting += 1
        await entry.kept

    async def close(self) -> None:
        """Keep what waits and write the end, in bounded time."""
        if self._closed:
            return
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        self._writer.omitted = self._flood.take_omitted()
        if self._gathering:
            self._hand_over()
        if not await asyncio.to_thread(self._writer.close, timeout_seconds=self._bound_seconds):
            _log.error("audit_not_ended", reason="the last lines could not be written in time")

    def _hand_over(self) -> None:
        if entries := self._gathering:
            self._gathering = []
            self._handed_over.append((self._loop.time() + self._bound_seconds, entries))
            if self._watching is None:
                self._watching = self._loop.call_later(self._bound_seconds, self._watch)
            self._writer.put(entries)

    def _watch(self) -> None:
        """Refuse those who have waited for too long."""
        now = self._loop.time()
        self._watching = None
        for until, entries in self._handed_over:
            if until > now:
                self._watching = self._loop.call_at(until, self._watch)
                break
            self._refuse([entry for entry in entries if not entry.kept.done()])

    def _refuse(self, late: Entries) -> None:
        if late and not self._slow:
            self._slow = True
            self._counters.audit_failure("slow")
            _log.error("audit_failed", reason="slow")
        self._writer.refused += len(late)
        for entry in late:
            entry.kept.set_exception(_unavailable())

    def _settle_from_thread(self, groups: Sequence[Entries], failure: str | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has closed, and its waiters with it
            self._loop.call_soon_threadsafe(self._settle, groups, failure)

    def _settle(self, groups: Sequence[Entries], failure: str | None) -> None:
        if self._slow and failure is None:
            _log.warning("audit_resumed", reason="slow")
        self._slow = False
        for entries in groups:  # they come back in the order in which they were handed over
            self._handed_over.popleft()
            self._waiting -= len(entries)
            for entry in entries:
                if failure is not None:
                    self._flood.give_back(entry.omitted)
                if entry.kept.done():  # its caller has gone away, or was refused
                    continue
                if failure is None:
                    entry.kept.set_result(None)
                else:
                    self._writer.refused += 1
                    entry.kept.set_exception(_unavailable())


def _unavailable() -> AuditUnavailable:
    return AuditUnavailable("the attempt cannot be recorded, so it is refused")
