"""Group commit: concurrent writes of one process share a transaction and its fsync."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import apsw

from app.errors import StoreUnavailable

MAXIMUM_BATCH: Final = 256
MAXIMUM_WAITING: Final = 10_000
# SQLError: a function refuses a value, such as JSON that SQLite does not parse. Python's: a value cannot be bound.
_OWN_ERRORS: Final = (apsw.ConstraintError, apsw.SQLError, apsw.TooBigError, OverflowError, TypeError, ValueError)
Rows = list[tuple[Any, ...]]


@dataclass(slots=True)
class _Write:
    sql: str
    parameters: Sequence[Any]
    future: asyncio.Future[Rows]
    loop: asyncio.AbstractEventLoop
    rows: Rows | None = None
    error: BaseException | None = None


class GroupCommitWriter:
    """Runs single statements on one connection in one thread.

    Statements that arrive during a commit share the next one. A statement's rows are returned after its commit; if
    the commit fails, all its statements fail. The errors are apsw's.
    """

    def __init__(self, *, connect: Callable[[], apsw.Connection], guard: Callable[[], None]) -> None:
        """`guard` runs in each transaction before its first statement; an error that it raises fails them all."""
        self._connection = connect()
        self._guard = guard
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Run one statement and return its rows once it is durable.

        Cancelling the call before its statement has started skips the statement; later it may still be committed.
        """
        if self._closed:
            raise apsw.CantOpenError("the writer is closed")
        if self._queue.qsize() >= MAXIMUM_WAITING:
            raise StoreUnavailable("too many writes are waiting; this one was not written")
        loop = asyncio.get_running_loop()
        write = _Write(sql, parameters, loop.create_future(), loop)
        self._queue.put(write)
        return await write.future

    async def close(self) -> None:
        """Commit the queued statements, then close the connection."""
        if not self._closed:
            self._closed = True
            self._queue.put(None)
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch, last = self._fill(first)
            self._commit(batch)
            _settle(batch)
            if last:
                break
        self._connection.close()

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
        except Exception as error:  # noqa: BLE001  passed on to the callers; the thread must survive
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
