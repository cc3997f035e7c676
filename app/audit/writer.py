"""Group commit for the audit trail."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

import structlog

from app.audit.keys import AuditKey
from app.audit.lines import Chain
from app.audit.members import end_members, event_members, resumed_members, start_members
from app.audit.retry_buffer import RetryBuffer
from app.audit.target import AuditTarget, WriteError
from app.tokens.events import TokenEvent

# --- What the audit trail counts, for whoever exports it.


class AuditCounters(Protocol):
    """Called from any thread, after the fact; never with anything of an event in its arguments."""

    def audit_events(self, count: int) -> None:
        """Count events that are kept."""
        ...

    def audit_failure(self, reason: str) -> None:
        """Count a write that failed; `reason` is an errno's name, `slow`, or `full` where too many were waiting."""
        ...

    def audit_omitted(self) -> None:
        """Count a refusal that was left out because its caller had too many of them at once."""
        ...


# --- Group commit for the audit trail: what waits while one write is under way goes into the next one together.

Sync = Literal["always", "interval", "off"]

MAXIMUM_BATCH: Final = 512
FLUSH_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 1.0
_NOT_STARTED: Final = "not_started"
_log = structlog.get_logger()


@dataclass(slots=True)
class Entry:
    """An attempt that waits to be kept. `omitted` attempts precede it that are left out; 0 once that is said."""

    at: float
    event: TokenEvent
    omitted: int
    kept: asyncio.Future[None]


Entries = list[Entry]


class AuditWriter:
    """One thread that signs and writes the lines of one chain.

    While a write has failed it keeps nothing, and tries each `retry_seconds` to write a line that says that it goes on,
    and behind it the events of attempts that had been made when it failed.
    `settle` is called from the thread, for each group of entries, with what went wrong or `None`.
    """

    def __init__(
        self,
        *,
        target: AuditTarget,
        chain: Chain,
        previous_keys: Sequence[AuditKey],
        sync: Sync,
        counters: AuditCounters,
        settle: Callable[[Sequence[Entries], str | None], None],
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
        self._queue: queue.SimpleQueue[Entries | None] = queue.SimpleQueue()
        self._late = RetryBuffer()
        self._refused_told = 0
        self._flush_at: float | None = None
        self._retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="audit-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, entries: Entries) -> None:
        self._queue.put(entries)

    def close(self, *, timeout_seconds: float) -> bool:
        """Write what waits and the end; return whether that was done in time."""
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
                self._keep(groups)
            self._tend()
        self._end()
        self._target.close()

    def _end(self) -> None:
        if self.failure is not None:
            self._resume()  # once more, for there is no later
        if self.failure is None:
            try:
                self._write([end_members(time.time(), omitted=self.omitted)])
                self._flush()
            except WriteError as error:
                self._fail(error.reason)
        if self._late:
            _log.error("audit_not_ended", reason="attempts that were made are not in the record")

    def _take(self) -> tuple[list[Entries], bool]:
        """Wait for entries, and take with them what else waits; also return whether they are the last."""
        groups: list[Entries] = []
        taken = 0
        try:
            group = self._queue.get(timeout=self._seconds_to_retry())
            while group is not None:
                groups.append(group)
                taken += len(group)
                if taken >= MAXIMUM_BATCH:
                    return groups, False
                group = self._queue.get_nowait()
        except queue.Empty:
            return groups, False
        return groups, True

    def _seconds_to_retry(self) -> float | None:
        due = self._flush_at if self.failure is None else self._retry_at
        return None if due is None else max(0.0, due - time.monotonic())

    def _tend(self) -> None:
        """Do what the time has come for."""
        now = time.monotonic()
        if self.failure is not None:
            if now >= self._retry_at:
                self._resume()
        elif self._flush_at is not None and now >= self._flush_at:
            try:
                self._flush()
            except WriteError as error:
                self._fail(error.reason)

    def _keep(self, groups: list[Entries]) -> None:
        entries = [one for group in groups for one in group]
        standing = 0
        if self.failure is None:
            try:
                self._write([event_members(one.at, one.event, one.omitted) for one in entries])
                standing = len(entries)
            except WriteError as error:
                self._fail(error.reason)
                standing = error.kept
            except Exception as error:  # noqa: BLE001  this thread must live on
                self._fail(type(error).__name__)
            self._counters.audit_events(standing)
        for number, one in enumerate(entries):
            if number < standing or self._late.add(one.at, one.event, one.omitted):
                one.omitted = 0
        self._settle(groups, self.failure)

    def _write(self, members: Sequence[str]) -> None:
        """Append lines with these members to the chain. Where that raises, it goes on after those that stand there."""
        lines = self._chain.sealed(members)
        try:
            self._target.append(lines, durably=self._sync == "always")
        except WriteError as error:
            self._chain.keep(lines[: error.kept])
            raise
        self._chain.keep(lines)
        if self._sync == "interval" and self._flush_at is None:
            self._flush_at = time.monotonic() + self._flush_seconds

    def _flush(self) -> None:
        self._flush_at = None
        if self._sync != "off":
            self._target.flush()

    def _resume(self) -> None:
        """Begin the chain, or go on with it: either proves that lines can be kept."""
        refused, before = self.refused, self.failure
        try:
            if self._chain.seq == 0:
                named = self._target.unnamed_chains(self._keys)
                line = start_members(time.time(), key_name=self._chain.key.name, sync=self._sync, named=named)
            else:
                line = resumed_members(time.time(), refused=refused - self._refused_told)
            self._write([line])
            self._flush()
            self._refused_told = refused
            self._write_late()
        except WriteError as error:
            self._fail(error.reason)
            return
        self.failure = None
        if before != _NOT_STARTED:
            _log.warning("audit_resumed", reason=before)

    def _write_late(self) -> None:
        while late := self._late.first(MAXIMUM_BATCH):
            standing = len(late)
            try:
                self._write(late)
            except WriteError as error:
                standing = error.kept
                raise
            finally:
                self._late.drop(standing)
                self._counters.audit_events(standing)

    def _fail(self, reason: str) -> None:
        if reason != self.failure:
            _log.error("audit_failed", reason=reason)
        self.failure = reason
        self._retry_at = time.monotonic() + self._retry_seconds
        self._counters.audit_failure(reason)
