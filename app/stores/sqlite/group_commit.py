"""Group commit: concurrent writes of one process share a transaction and its fsync."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from app.errors import StoreMisconfigured, StoreUnavailable
from app.stores.sqlite.database import wait_for_locks

MAXIMUM_BATCH: Final = 256
MAXIMUM_WAITING: Final = 10_000
# SQLError: a function refuses a value, such as JSON that SQLite does not parse. Python's: a value cannot be bound.
_OWN_ERRORS: Final = (apsw.ConstraintError, apsw.SQLError, apsw.TooBigError, OverflowError, TypeError, ValueError)
ERASURE_CHECKPOINT_SECONDS: Final = 0.5  # erasures within this time share a checkpoint
CHECKPOINT_INTERVAL_SECONDS: Final = 10.0
REFUSAL_SECONDS: Final = 3.0
Rows = list[tuple[Any, ...]]
Parameters = Sequence[Any] | Mapping[str, Any]


@dataclass(slots=True, eq=False)
class _Write:
    sql: str
    parameters: Parameters
    future: asyncio.Future[Rows]
    loop: asyncio.AbstractEventLoop
    erases: bool
    rows: Rows | None = None
    error: BaseException | None = None


class GroupCommitWriter:
    """Runs single statements on one connection in one thread.

    Statements that arrive during a commit share the next one. A statement's rows are returned after its commit; if
    the commit fails, all its statements fail. The errors are apsw's. `disk_refused` is true from a commit
    that failed on the disk until one succeeds; a caller that has proved a write may clear it too. `disk_refused_lately`
    is true for `REFUSAL_SECONDS` after each such commit, because small writes may fit where large ones do not.

    A statement that erased rows is followed, at most `ERASURE_CHECKPOINT_SECONDS` later, by a checkpoint that empties
    the write-ahead log, which otherwise keeps the erased pages. No statement waits for it. If another process's
    transaction prevents it, it fails at once and is repeated after the same time, and at the close. Every process also
    empties the log at its start and every `checkpoint_interval_seconds`, because another process may have ended
    between an erasure and its checkpoint.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], apsw.Connection],
        guard: Callable[[], None],
        checkpoint_interval_seconds: float = CHECKPOINT_INTERVAL_SECONDS,
    ) -> None:
        """`guard` runs before each checkpoint, and in each transaction before its first statement.

        An error that it raises prevents the checkpoint, or fails all the statements.
        """
        self._connection = connect()
        self._guard = guard
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._checkpoint_interval_seconds = checkpoint_interval_seconds
        self._checkpoint_at = 0.0
        self._erasure_pending = True  # an earlier process may have left one
        self.disk_refused = False
        self._disk_refused_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def execute(self, sql: str, parameters: Parameters, *, erases: bool = False) -> Rows:
        """Run one statement and return its rows once it is durable.

        Cancelling the call before its statement has started skips the statement; later it may still be committed.
        """
        if self._closed:
            raise apsw.CantOpenError("the writer is closed")
        if self._queue.qsize() >= MAXIMUM_WAITING:
            raise StoreUnavailable("too many writes are waiting; this one was not written")
        loop = asyncio.get_running_loop()
        write = _Write(sql, parameters, loop.create_future(), loop, erases)
        self._queue.put(write)
        return await write.future

    @property
    def disk_refused_lately(self) -> bool:
        refused_at = self._disk_refused_at
        return refused_at is not None and time.monotonic() - refused_at < REFUSAL_SECONDS

    async def close(self) -> None:
        """Commit the queued statements, then close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        self._checkpoint()
        last = False
        while not last:
            try:
                first = self._queue.get(timeout=self._seconds_until_checkpoint())
            except queue.Empty:
                self._checkpoint()
                continue
            if first is None:
                break
            batch, last = self._fill(first)
            self._commit(batch)
            _settle(batch)
            if any(write.erases and write.rows for write in batch):
                self._erasure_pending = True
                self._checkpoint_at = min(self._checkpoint_at, time.monotonic() + ERASURE_CHECKPOINT_SECONDS)
            if self._seconds_until_checkpoint() == 0:
                self._checkpoint()
        if self._erasure_pending:
            self._checkpoint()
        self._connection.close()

    def _seconds_until_checkpoint(self) -> float:
        return max(0.0, self._checkpoint_at - time.monotonic())

    def _checkpoint(self) -> None:
        """Move the write-ahead log into the database and empty it, and plan the next time."""
        self._connection.set_busy_timeout(0)  # this thread's statements must not wait for a read of another process
        try:
            self._guard()  # after a move, a copy of the file may lack what only the log has
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            self._erasure_pending = False
        except (apsw.Error, StoreMisconfigured):
            pass
        wait_for_locks(self._connection)
        pause = ERASURE_CHECKPOINT_SECONDS if self._erasure_pending else self._checkpoint_interval_seconds
        self._checkpoint_at = time.monotonic() + pause

    def _fill(self, first: _Write) -> tuple[list[_Write], bool]:
        batch = [first]
        while len(batch) < MAXIMUM_BATCH:
            try:
                write = self._queue.get_nowait()
            except queue.Empty:
                break
            if write is None:
                return batch, True
            batch.append(write)
        return batch, False

    def _commit(self, batch: list[_Write]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._guard()
            for write in batch:
                self._run_statement(write)
            self._connection.execute("COMMIT")
            if self.disk_refused and any(write.rows for write in batch):  # rows were changed, and so written
                self.disk_refused = False
        except Exception as error:  # noqa: BLE001  passed on to the callers; the thread must survive
            if isinstance(error, (apsw.FullError, apsw.IOError)):
                self._disk_refused_at = time.monotonic()
                self.disk_refused = True
            with contextlib.suppress(apsw.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            for write in batch:
                write.error = error

    def _run_statement(self, write: _Write) -> None:
        """Run one statement; an error of its own values fails it alone, any other error the whole commit."""
        if write.future.done():  # cancelled: its caller counts on it not being written
            return
        try:
            write.rows = list(self._connection.execute(write.sql, write.parameters))
        except _OWN_ERRORS as error:
            write.error = error


def _settle(batch: list[_Write]) -> None:
    """Resolve the futures with one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_resolve, writes)


def _resolve(writes: list[_Write]) -> None:
    for write in writes:
        if write.future.done():  # cancelled
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.rows or [])
