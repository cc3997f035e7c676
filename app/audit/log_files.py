"""The files that AUDIT_LOG names, and reading them."""

from __future__ import annotations

import fcntl
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from app.audit.lines import CHAIN_PATTERN

# --- A file of the record, open for reading.


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; whatever it refuses is an `OSError` that names it, as Python's names only what cannot be opened."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


# --- A file of lines, read from its end. What follows the last line feed was torn off by a kill and is passed over.

_BLOCK_BYTES: Final = 64 * 1024


def lines_from_the_end(path: Path) -> Iterator[bytes]:
    """Yield the whole lines, the last one first, without their line feeds."""
    behind: list[bytes] = []  # pieces of the line whose beginning has not been reached, the last one first
    torn = True
    for _, block in _blocks_from_the_end(path):
        first, *others = block.split(b"\n")
        for piece in reversed(others):
            if torn:
                torn = False
            else:
                yield b"".join(reversed([*behind, piece]))
            behind.clear()
        behind.append(first)
    if not torn:
        yield b"".join(reversed(behind))


def bytes_of_whole_lines(path: Path) -> int:
    """Return how many bytes the whole lines have, with their line feeds."""
    for start, block in _blocks_from_the_end(path):
        found = block.rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


def _blocks_from_the_end(path: Path) -> Iterator[tuple[int, bytes]]:
    with opened(path) as file:
        start = file.seek(0, os.SEEK_END)
        while start > 0:
            size = min(_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            yield start, file.read(size)


# --- The files that AUDIT_LOG names: `audit.jsonl` stands for `audit.<chain>.<number>.jsonl` of every process.

_NAME: Final = re.compile(rf"(.*)\.({CHAIN_PATTERN})\.([0-9]{{6,12}})(\.[^.]*)?")


@dataclass(frozen=True, slots=True)
class LogFiles:
    """The files beside `path` that are named after it."""

    path: Path

    @property
    def directory(self) -> Path:
        return self.path.parent

    def file(self, chain: str, number: int) -> Path:
        """Return where the chain's file of this number is, counted from 1."""
        return self.path.with_name(f"{self.path.stem}.{chain}.{number:06d}{self.path.suffix}")

    def chains(self) -> dict[str, list[Path]]:
        """Return the files that are there, by chain, each chain's in order."""
        found: dict[str, list[Path]] = {}
        with os.scandir(self.directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            parts = _NAME.fullmatch(name)
            if parts and (parts[1], parts[4] or "") == (self.path.stem, self.path.suffix):
                found.setdefault(parts[2], []).append(self.directory / name)
        return found

    def make_directory(self) -> None:
        """Create the directory for its owner alone, where it is missing; raises `OSError`."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def files(self) -> list[Path]:
        return [path for chain in self.chains().values() for path in chain]


def require_writable(family: LogFiles) -> None:
    """Create the directory where it is missing, and prove that files can be made in it; raises `OSError`."""
    family.make_directory()
    draft = family.directory / f".{family.path.name}.{secrets.token_hex(8)}.probe"
    try:
        with draft.open("xb") as file:
            file.write(b"\n")
    finally:
        draft.unlink(missing_ok=True)


def chain_of_file(path: Path) -> str | None:
    """Return the chain that a file belongs to by its name; `None` where it may hold anything."""
    parts = _NAME.fullmatch(path.name)
    return parts[2] if parts else None


def is_being_written(path: Path) -> bool:
    """Whether a process holds the lock that a chain's newest file is under while it is written."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
