"""A file of lines, read from its end. What follows the last line feed was torn off by a kill and is passed over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from app.audit.opened import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
