"""A chain among other lines: on standard output, or into a FIFO or device that somebody else reads."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from app.audit.chain_checkpoint import ChainCheckpoint
from app.audit.keys import AuditKey
from app.audit.target import WriteError

STANDARD_OUTPUT: Final = 1
_ATOMIC_BYTES: Final = 4096  # PIPE_BUF of Linux: workers share the pipe, and no two such writes mix


class StreamTarget:
    """`AuditTarget` that hands lines on. Nothing is undone here, and nothing flushed but what a file would be."""

    def __init__(self, *, path: Path | None) -> None:
        """`path` is a FIFO or a device; `None` is standard output."""
        self._path = path
        self._descriptor: int | None = None
        self._torn = False

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:  # noqa: ARG002  a stream cannot be read back
        return []

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        kept = 0
        try:
            descriptor = self._opened()
            for piece in _pieces(lines):
                data = b"".join([line + b"\n" for line in piece])
                for written in self._written(descriptor, data):
                    kept += data.count(b"\n", *written)
            if durably:
                _flush(descriptor)
        except OSError as error:
            self.close()
            raise WriteError(errno.errorcode.get(error.errno or 0, "EIO"), kept=kept) from None

    def flush(self) -> None:
        if self._descriptor is not None:
            try:
                _flush(self._descriptor)
            except OSError as error:
                raise WriteError(errno.errorcode.get(error.errno or 0, "EIO")) from None

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is None:
            if self._path is None:
                self._descriptor = os.dup(STANDARD_OUTPUT)
            else:
                # without O_NONBLOCK the opening of a FIFO would wait for its reader for ever
                self._descriptor = os.open(
                    self._path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
                )
                os.set_blocking(self._descriptor, True)
        return self._descriptor

    def _written(self, descriptor: int, data: bytes) -> Iterator[tuple[int, int]]:
        """Write everything; yields from where to where each time, for the next time may fail."""
        if self._torn:
            os.write(descriptor, b"\n")
            self._torn = False
        start = 0
        while start < len(data):
            end = start + os.write(descriptor, memoryview(data)[start:])
            self._torn = end < len(data) and data[end - 1 : end] != b"\n"
            yield start, end
            start = end


def _flush(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:  # a pipe knows no disk
            raise


def is_stream(path: Path) -> bool:
    """Whether AUDIT_LOG names something that is there and is no file."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _pieces(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Group lines so that each group is written at once."""
    pieces: list[list[bytes]] = [[]]
    size = 0
    for line in lines:
        if pieces[-1] and size + len(line) + 1 > _ATOMIC_BYTES:
            pieces.append([])
            size = 0
        pieces[-1].append(line)
        size += len(line) + 1
    return pieces
