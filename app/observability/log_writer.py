"""The log writer: a bounded queue of lines, and a thread that writes them to a file descriptor.

A log reader that does not read, or a disk that hangs, must not block the service, so logging a line only queues it.
While the queue is full, new lines are dropped; after the next lines that are written, one line says how many are
missing. Lines that cannot be written, for example to a full disk, count as missing too.

docs/decisions/log-writer.md says why this is not `logging.handlers.QueueListener`.
"""

from __future__ import annotations

import atexit
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

MOST_WAITING: Final = 5_000  # lines; the thread may hold as many again
FINISH_SECONDS: Final = 2.0
_GATHER_SECONDS: Final = 0.05  # waking the thread for each line would cost more than the line
_PIECE_BYTES: Final = 4096  # PIPE_BUF of Linux: the workers and the audit trail share a pipe, and such writes never mix


class LogWriter:
    """A text file whose `write` never blocks and never fails; each call writes one or more whole lines.

    `format_dropped` renders the line that says how many are missing.
    """

    def __init__(self, *, descriptor: int | None) -> None:
        """Start the thread. A `descriptor` of `None` discards everything."""
        self.descriptor = descriptor
        self.format_dropped: Callable[[int], str] = "{} lines dropped\n".format
        self._torn = False  # the last write ended within a line
        self._start()
        os.register_at_fork(after_in_child=self._start)  # the child inherits neither the thread nor waiting lines
        atexit.register(self.finish)

    def _start(self) -> None:
        # the garbage collector may run a finalizer that logs at any point in here, so everything is reentrant
        self._queue: SimpleQueue[str | threading.Event] = SimpleQueue()
        self._dropping = threading.RLock()
        self._dropped = 0  # while the queue was full
        self._missing = 0  # of the lines that the thread has taken, and dropped lines not yet reported
        self._deadline: float | None = None
        self._finishing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="log-writer", daemon=True)
        self._thread.start()

    def write(self, text: str) -> None:
        if self.descriptor is None or sys.is_finalizing():
            return
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(text)
        else:
            with self._dropping:
                self._dropped += 1
                if self._dropped == 1:
                    self._queue.put("")  # else the thread might report it with the next line only
        if self._deadline is not None:
            self._wait_until_written(self._deadline)

    def finish(self, *, within_seconds: float = FINISH_SECONDS) -> None:
        """Wait until every line is written. Each later `write` waits too, all of them together within this time.

        For a process that is about to end: any line may be its last.
        """
        if self._deadline is None:
            self._deadline = time.monotonic() + within_seconds
        self._finishing.set()
        self._wait_until_written(self._deadline)

    def resume(self) -> None:
        """Undo `finish` in a process that goes on."""
        self._deadline = None
        self._finishing.clear()

    def _wait_until_written(self, deadline: float) -> None:
        if threading.current_thread() is self._thread:
            return
        written = threading.Event()
        self._queue.put(written)
        written.wait(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            self._finishing.wait(_GATHER_SECONDS)
            taken = [first, *(self._queue.get() for _ in range(self._queue.qsize()))]
            with self._dropping:
                dropped, self._dropped = self._dropped, 0
            with suppress(Exception):  # this thread must not end
                self._write_lines([one for one in taken if isinstance(one, str)], dropped)
            for one in taken:
                if isinstance(one, threading.Event):
                    one.set()

    def _write_lines(self, lines: list[str], dropped: int) -> None:
        self._report_missing()
        for piece in _pieces(lines):
            self._missing += self._write(piece)
        self._missing += dropped
        self._report_missing()

    def _report_missing(self) -> None:
        if self._missing and not self._write(_encoded(self.format_dropped(self._missing))):
            self._missing = 0

    def _write(self, lines: bytes) -> int:
        """Write whole lines, and return how many did not arrive whole."""
        rest = b"\n" + lines if self._torn else lines
        with suppress(OSError):  # a full disk, a pipe without a reader
            while rest:
                written = self._write_some(rest)
                self._torn = not rest[:written].endswith(b"\n")
                rest = rest[written:]
        return min(rest.count(b"\n"), lines.count(b"\n"))

    def _write_some(self, data: bytes) -> int:
        descriptor = -1 if self.descriptor is None else self.descriptor
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:  # another process that shares the pipe has made it non-blocking
                writable = select.poll()
                writable.register(descriptor, select.POLLOUT)
                writable.poll()


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace")  # a lone surrogate


def _pieces(lines: list[str]) -> Iterator[bytes]:
    """Join lines into pieces of at most `_PIECE_BYTES`; a longer line is a piece by itself."""
    piece = b""
    for line in map(_encoded, lines):
        if piece and len(piece) + len(line) > _PIECE_BYTES:
            yield piece
            piece = b""
        piece += line
    if piece:
        yield piece
