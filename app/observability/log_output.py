"""Where log lines go: into a queue, and by a thread of its own to standard output, or for a command to standard error.

A reader of the log that stands still, or a disk that hangs below it, must hold no call up. So whoever logs only queues
its line. Where the queue is full the newest lines are dropped, and as soon as the output takes something again a line
says how many. Lines that it refuses, such as a full disk's, are dropped and counted the same way.
"""

from __future__ import annotations

import atexit
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import Final

MOST_WAITING: Final = 2_000_000  # characters, some five thousand lines; as many again may be in the thread's hands
END_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.001
_GATHER_SECONDS: Final = 0.05
_ATOMIC_BYTES: Final = 4096  # PIPE_BUF of Linux: workers and the audit trail share the pipe, and no two such writes mix
_FILE_BYTES: Final = 65_536  # to a file no two writes mix at all


class LogOutput:
    """A file to write lines to that never blocks and never fails; each call of `write` is one or more whole lines.

    The thread starts with the first line. A child that is forked has an empty queue and a thread of its own.
    """

    def __init__(self, *, descriptor: int | None) -> None:
        """`descriptor` of `None` loses everything."""
        self.descriptor = descriptor
        self.tell_dropped: Callable[[int], str] = "{} lines dropped\n".format
        self._most_bytes = _FILE_BYTES if _is_file(descriptor) else _ATOMIC_BYTES
        self._torn = False
        self._begin()
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self.end)

    def _begin(self) -> None:
        # a garbage collection may happen anywhere in here and log what it finds: nothing but reentrant locks
        self._lock = threading.RLock()
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []
        self._characters = 0
        self._dropped = 0  # after the lines that wait
        self._lost = 0  # of those that the thread has taken
        self._busy = False
        self._wait_until: float | None = None
        self._hurry = threading.Event()

    def write(self, text: str) -> None:
        if self.descriptor is None or sys.is_finalizing():
            return
        with self._lock:
            if self._characters + len(text) > MOST_WAITING:
                self._dropped += 1
            else:
                self._lines.append(text)
                self._characters += len(text)
            if not self._busy and self._has_thread():
                self._busy = True
                self._wake.put(None)
        if self._wait_until is not None:
            self._wait()

    def flush(self) -> None:
        """Do nothing: it is called after each line, and the thread needs no telling."""

    def end(self, *, within_seconds: float = END_SECONDS) -> None:
        """Wait until every line is written; from now on each line is waited for, all of them together for this long.

        A process that is about to end has nobody to hold up, and may end right after its last line.
        """
        if self._wait_until is None:
            self._wait_until = time.monotonic() + within_seconds
        self._hurry.set()
        self._wait()

    def go_on(self) -> None:
        """Take `end` back, where the process did not end."""
        self._wait_until = None
        self._hurry.clear()

    def _wait(self) -> None:
        until = self._wait_until or 0.0
        while self._busy and threading.current_thread() is not self._thread and time.monotonic() < until:
            time.sleep(_PAUSE_SECONDS)

    def _has_thread(self) -> bool:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="log-output", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads for now: the next line tries again
                self._thread = None
        return self._thread is not None

    def _run(self) -> None:
        while True:
            self._wake.get()
            self._hurry.wait(_GATHER_SECONDS)  # switching threads for each line would cost more than the line
            while taken := self._take():
                with suppress(Exception):  # this thread must not end
                    self._write(*taken)

    def _take(self) -> tuple[list[str], int] | None:
        """Take all lines that wait, and how many were dropped after them."""
        with self._lock:
            if not self._lines and not self._dropped:
                self._busy = False
                return None
            taken = self._lines, self._dropped
            self._lines, self._characters, self._dropped = [], 0, 0
            return taken

    def _write(self, lines: list[str], dropped: int) -> None:
        if self._tell():
            for piece in _pieces(lines, self._most_bytes):
                whole = b"".join(piece)
                self._lost += whole.count(b"\n") - self._put(whole)
        else:
            self._lost += len(lines)
        self._lost += dropped
        self._tell()

    def _tell(self) -> bool:
        """Say how many lines are missing here, if any are; whether the output took it."""
        if self._lost and self._put(_encoded(self.tell_dropped(self._lost))):
            self._lost = 0
        return not self._lost

    def _put(self, data: bytes) -> int:
        """Write whole lines, and return how many of them arrived whole."""
        begin = b"\n" if self._torn else b""
        rest = begin + data
        with suppress(OSError):  # a full disk, a pipe without a reader
            while rest:
                written = self._write_some(rest)
                self._torn = not rest[:written].endswith(b"\n")
                rest = rest[written:]
        return data.count(b"\n") - rest.count(b"\n") + (len(rest) > len(data))

    def _write_some(self, data: bytes) -> int:
        descriptor = -1 if self.descriptor is None else self.descriptor
        while True:
            try:
                return os.write(descriptor, data)
            except BlockingIOError:  # somebody who shares the pipe made it so
                room = select.poll()
                room.register(descriptor, select.POLLOUT)
                room.poll()


def _is_file(descriptor: int | None) -> bool:
    try:
        return descriptor is not None and stat.S_ISREG(os.fstat(descriptor).st_mode)
    except OSError:
        return False


def _encoded(line: str) -> bytes:
    return line.encode(errors="backslashreplace")  # a lone surrogate


def _pieces(lines: list[str], most_bytes: int) -> Iterator[list[bytes]]:
    """Group lines so that each group is written at once."""
    piece: list[bytes] = []
    size = 0
    for line in map(_encoded, lines):
        if piece and size + len(line) > most_bytes:
            yield piece
            piece, size = [], 0
        piece.append(line)
        size += len(line)
    if piece:
        yield piece
