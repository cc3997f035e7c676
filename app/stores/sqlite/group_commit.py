"""Group commit: concurrent writers of one process share a transaction and its one fsync."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import apsw

from app.errors import StoreUnavailable

MAXIMUM_BATCH = 256
MAXIMUM_WAITING = 10_000
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

    What waits while a commit is under way goes into the next one together. A statement's rows are handed out only
    after the commit that holds it; where that fails, every statement of the commit fails. The errors are apsw's.
    """

    def __init__(self, *, connect: Callable[[], apsw.Connection], guard: Callable[[], None]) -> None:
        """`guard` runs in each transaction before its first statement; what it raises fails them all."""
        self._connection = connect()
        self._guard = guard
        self._queue: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="sqlite-writer", daemon=True)
        self._thread.start()

    async def execute(self, sql: str, parameters: Sequence[Any]) -> Rows:
        """Run one statement and return its rows once it is durable.

        A statement whose caller has gone away before its turn is not run. One whose caller goes away later may still
        be committed.
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
        """Commit what is queued, then close the connection."""
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
                self._attempt(write)
            self._connection.execute("COMMIT")
        except Exception as error:  # noqa: BLE001  it goes to the callers; this thread must live on
            with contextlib.suppress(apsw.Error):
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
            for write in batch:
                write.error = error

    def _attempt(self, write: _Write) -> None:
        """Run one statement; a broken constraint undoes that statement alone, anything else the whole commit."""
        if write.future.done():  # its caller was told that it failed, so it must not happen behind their back
            return
        try:
            write.rows = list(self._connection.execute(write.sql, write.parameters))
        except apsw.ConstraintError as error:
            write.error = error


def _settle(batch: list[_Write]) -> None:
    """Hand out the results with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[_Write]] = {}
    for write in batch:
        by_loop.setdefault(write.loop, []).append(write)
    for loop, writes in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop has closed, and its waiters with it
            loop.call_soon_threadsafe(_resolve, writes)


def _resolve(writes: list[_Write]) -> None:
    for write in writes:
        if write.future.done():  # its caller has gone away
            continue
        if write.error is not None:
            write.future.set_exception(write.error)
        else:
            write.future.set_result(write.rows or [])
