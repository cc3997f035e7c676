"""The files that AUDIT_LOG names, and how to read them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from app.audit.chained_lines import CHAIN_PATTERN, MAXIMUM_LINE_BYTES

_NAME: Final = re.compile(rf"(.*)\.({CHAIN_PATTERN})\.([0-9]{{6,12}})(\.[^.]*)?")
_BLOCK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files named after `path`: `audit.jsonl` stands for `audit.<chain>.<number>.jsonl` of every process."""

    path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    def file(self, chain: str, number: int) -> Path:
        """Return the path of a chain's file; `number` counts from 1."""
        return self.path.with_name(f"{self.path.stem}.{chain}.{number:06d}{self.path.suffix}")

    def chains(self) -> dict[str, list[Path]]:
        """Return the existing files of each chain, in order; raises `OSError`.

        Skips anything else that has such a name, because opening a FIFO waits for a writer.
        """
        found: dict[str, list[Path]] = {}
        with os.scandir(self.directory) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
        for name in names:
            parts = _NAME.fullmatch(name)
            if parts and (parts[1], parts[4] or "") == (self.path.stem, self.path.suffix):
                found.setdefault(parts[2], []).append(self.directory / name)
        return found

    def files(self) -> list[Path]:
        return [path for chain in self.chains().values() for path in chain]

    def make_directory(self) -> None:
        """Create the directory, if it is missing, for its owner alone; raises `OSError`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def require_writable(self) -> None:
        """Create the directory if it is missing, and a file in it, then delete that file; raises `OSError`."""
        self.make_directory()
        probe = self.directory / f".{self.path.name}.{secrets.token_hex(8)}.probe"
        try:
            with probe.open("xb") as file:
                file.write(b"\n")
        finally:
            probe.unlink(missing_ok=True)


def chain_of_file(path: Path) -> str | None:
    """Return the chain in a file's name, or `None` if the file may hold lines of any chain."""
    parts = _NAME.fullmatch(path.name)
    return parts[2] if parts else None


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock that it keeps on its chain's newest file."""
    try:
        descriptor = _open_regular(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. Every `OSError` names it; Python names it only if opening fails.

    A file with the name of a chain's must be a regular one. Any other may be a pipe that the caller reads on purpose.
    """
    try:
        with path.open("rb") if chain_of_file(path) is None else os.fdopen(_open_regular(path), "rb") as file:
            yield file
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _open_regular(path: Path) -> int:
    """Open a regular file for reading; raise `OSError` for any other, without waiting for a FIFO's writer."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Yield the complete lines without their line feeds, the last one first.

    Bytes after the last line feed are half a line, left by a kill, and are skipped. If no line feed is found within
    `MAXIMUM_LINE_BYTES`, an empty line, which is no audit line, stands for all that is not read.
    """
    pieces: list[bytes] = []  # of the line whose beginning is not read yet, the last piece first
    size = 0  # of that line so far
    torn = True
    for _, block in _blocks_from_the_end(path):
        first, *others = block.split(b"\n")
        for piece in reversed(others):
            if torn:
                torn = False
            else:
                yield b"".join(reversed([*pieces, piece]))
            pieces.clear()
            size = 0
        size += len(first)
        if size > MAXIMUM_LINE_BYTES:
            yield b""
            return
        if not torn:
            pieces.append(first)
    if not torn:
        yield b"".join(reversed(pieces))


def bytes_of_complete_lines(path: Path) -> int:
    """Return the size of the complete lines, with their line feeds.

    If the last `MAXIMUM_LINE_BYTES` have no line feed, a kill did not leave them, and the size is the whole file's.
    """
    size = 0
    for start, block in _blocks_from_the_end(path):
        found = block.rfind(b"\n")
        if found >= 0:
            return start + found + 1
        size = max(size, start + len(block))
        if size - start > MAXIMUM_LINE_BYTES:
            return size
    return 0


def _blocks_from_the_end(path: Path) -> Iterator[tuple[int, bytes]]:
    with opened(path) as file:
        start = file.seek(0, os.SEEK_END)
        while start > 0:
            size = min(_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            yield start, file.read(size)
