"""Group commit: one thread that signs and writes the audit lines of a process.

Events that arrive during a write go into the next write together.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from app.audit.chained_lines import Chain, end_members, event_members, resumed_members, start_members
from app.audit.retry_buffer import RetryBuffer
from app.audit.signing_key import AuditKey
from app.audit.targets import AuditTarget, WriteError
from app.tokens.events import INTENT, TokenEvent

Sync = Literal["always", "interval", "off"]

MAXIMUM_BATCH: Final = 512
FLUSH_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
_NOT_STARTED: Final = "not_started"
_log = structlog.get_logger()


class AuditCounters(Protocol):
    """Counters of the audit trail, called from any thread; no argument holds data of an event."""

    def audit_events(self, count: int) -> None:
        """Count events that were written."""
        ...

    def audit_failure(self, reason: str) -> None:
        """Count a failure: an errno's name, `slow`, `closed`, or `full` if too many events wait."""
        ...

    def audit_omitted(self) -> None:
        """Count a refusal that the limiter left out."""
        ...


@dataclass(slots=True)
class PendingEvent:
    """An event that waits to be written.

    `omitted` refusals were left out before it; 0 once a line states their number.
    """

    at: float
    event: TokenEvent
    omitted: int
    recorded: asyncio.Future[None]


PendingEvents = list[PendingEvent]


class AuditWriter:
    """Signs and writes the lines of one chain in a thread.

    After a failed write it writes no event. Every `retry_seconds` it tries to write a line that resumes the chain,
    followed by the events in the retry buffer. `settle` is called from the thread with groups of events and the reason
    of the failure, or `None`.
    """

    def __init__(
        self,
        *,
        target: AuditTarget,
        chain: Chain,
        previous_keys: Sequence[AuditKey],
        sync: Sync,
        counters: AuditCounters,
        settle: Callable[[Sequence[PendingEvents], str | None], None],
        flush_seconds: float = FLUSH_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self.failure: str | None = _NOT_STARTED
        self.opened = threading.Event()
        self.refused = 0
        self.omitted = 0
        self._target = target
        self._chain = chain
        self._keys = (chain.key, *previous_keys)
        self._sync = sync
        self._counters = counters
        self._settle = settle
        self._flush_seconds = flush_seconds
        self._retry_seconds = retry_seconds
        self._queue: queue.SimpleQueue[PendingEvents | None] = queue.SimpleQueue()
        self._retries = RetryBuffer()
        self._refused_written = 0  # of `refused`, the number that lines already state
        self._must_state_refused = False
        self._flush_at: float | None = None
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, group: PendingEvents) -> None:
        self._queue.put(group)

    def state_refused(self) -> None:
        """Have a `resumed` line state the refusals that no line states yet; does nothing if there are none."""
        if self.refused > self._refused_written:
            self._must_state_refused = True
            self._queue.put([])  # wakes the thread

    def close(self, *, timeout_seconds: float) -> bool:
        """Write the waiting events and the end line; return whether that finished in time."""
        self._queue.put(None)
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        self._resume()
        self.opened.set()
        last = False
        while not last:
            groups, last = self._take()
            if groups:
                self._record(groups)
            self._retry_or_flush()
        self._end()
        self._target.close()

    def _take(self) -> tuple[list[PendingEvents], bool]:
        """Wait for events and take all that are queued; also return whether they are the last ones."""
        groups: list[PendingEvents] = []
        taken = 0
        try:
            group = self._queue.get(timeout=self._seconds_until_due())
            while group is not None:
                if group:
                    groups.append(group)
                taken += len(group)
                if taken >= MAXIMUM_BATCH:
                    return groups, False
                group = self._queue.get_nowait()
        except queue.Empty:
            return groups, False
        return groups, True

    def _seconds_until_due(self) -> float | None:
        due = self._flush_at if self.failure is None else self._retry_at
        return None if due is None else max(0.0, due - time.monotonic())

    def _retry_or_flush(self) -> None:
        """Resume the chain, state refusals, or flush, if that is due."""
        now = time.monotonic()
        if self.failure is not None:
            if now >= self._retry_at:
                self._resume()
            return
        try:
            if self._must_state_refused:
                self._write_refused()
            if self._flush_at is not None and now >= self._flush_at:
                self._flush()
        except WriteError as error:
            self._fail(error.reason)

    def _record(self, groups: list[PendingEvents]) -> None:
        """Write the events; put those that cannot be written into the retry buffer."""
        pending = [one for group in groups for one in group]
        written = 0
        if self.failure is None:
            try:
                self._write([event_members(one.at, one.event, one.omitted) for one in pending])
                written = len(pending)
            except WriteError as error:
                self._fail(error.reason)
                written = error.kept
            except Exception as error:  # noqa: BLE001  the thread must survive an event that cannot be formatted
                self._fail(type(error).__name__)
            self._counters.audit_events(sum(one.event.outcome != INTENT for one in pending[:written]))
        for number, one in enumerate(pending):
            if number < written or self._keep(one):
                one.omitted = 0
        self._settle(groups, self.failure)

    def _keep(self, one: PendingEvent) -> bool:
        """Put an event into the retry buffer. An intent needs none: its change is refused, and that leaves an event."""
        return one.event.outcome != INTENT and self._retries.add(one.at, one.event, one.omitted)

    def _write(self, members: Sequence[str]) -> None:
        """Append lines with these members; if that raises, the chain continues after the lines that were kept."""
        lines = self._chain.sign(members)
        try:
            self._target.append(lines, durably=self._sync == "always")
        except WriteError as error:
            self._chain.advance(lines[: error.kept])
            raise
        self._chain.advance(lines)
        if self._sync == "interval" and self._flush_at is None:
            self._flush_at = time.monotonic() + self._flush_seconds

    def _write_refused(self) -> None:
        self._must_state_refused = False
        refused = self.refused
        if refused > self._refused_written:
            self._write([resumed_members(time.time(), refused=refused - self._refused_written)])
            self._refused_written = refused

    def _flush(self) -> None:
        self._flush_at = None
        if self._sync != "off":
            self._target.flush()

    def _resume(self) -> None:
        """Write and flush the start line, or a `resumed` line, then the retry buffer; success ends the failure."""
        refused, before = self.refused, self.failure
        try:
            if self._chain.seq == 0:
                named = [one.members() for one in self._target.unnamed_chains(self._keys)]
                line = start_members(time.time(), key_name=self._chain.key.name, sync=self._sync, named=named)
            else:
                line = resumed_members(time.time(), refused=refused - self._refused_written)
            self._write([line])
            self._flush()
            self._refused_written = refused
            self._write_retries()
        except WriteError as error:
            self._fail(error.reason)
            return
        self.failure = None
        if before != _NOT_STARTED:
            _log.warning("audit_resumed", reason=before)

    def _write_retries(self) -> None:
        while members := self._retries.first(MAXIMUM_BATCH):
            written = len(members)
            try:
                self._write(members)
            except WriteError as error:
                written = error.kept
                raise
            finally:
                self._retries.drop(written)
                self._counters.audit_events(written)

    def _fail(self, reason: str) -> None:
        if reason != self.failure:
            _log.error("audit_failed", reason=reason)
        self.failure = reason
        self._retry_at = time.monotonic() + self._retry_seconds
        self._counters.audit_failure(reason)

    def _end(self) -> None:
        if self.failure is not None:
            self._resume()  # the last chance to write the retry buffer
        if self.failure is None:
            try:
                self._write_refused()
                self._write([end_members(time.time(), omitted=self.omitted)])
                self._flush()
            except WriteError as error:
                self._fail(error.reason)
        if self._retries:
            _log.error("audit_not_ended", reason="completed operations are missing from the audit trail")
