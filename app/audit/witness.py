"""What a process says at its start about the chains beside it.

A chain without an end may have been killed, or its tail may have been cut; its own lines cannot tell. So whoever
starts next names the last line of every chain that nobody writes any more and that no start has named yet. From then
on neither a line nor a whole chain can go unnoticed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from app.audit.family import is_being_written
from app.audit.lines import NOTHING_BEFORE, START, digest, parse_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from app.audit.family import Family
    from app.audit.keys import AuditKey

_BLOCK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Witness:
    """A chain's last line as another process saw it: `seq` 0 where it had none, -1 where it was no line of ours."""

    chain: str
    seq: int
    hash: str


def unnamed_chains(family: Family, *, keys: Sequence[AuditKey]) -> list[Witness]:
    """Return the last lines of the chains that nobody writes and no start signed with one of `keys` names.

    Raises `OSError`. A file that goes away meanwhile is somebody's housekeeping.
    """
    chains = family.chains()
    named = {witness.chain for files in chains.values() for witness in _named_in(files[0], keys)}
    dead = [chain for chain, files in chains.items() if chain not in named and not is_being_written(files[-1])]
    # a chain goes on in a new file before it lets go of the old one, so one that did so meanwhile shows by now
    now = family.chains() if dead else {}
    return [_last_line(chain, chains[chain]) for chain in dead if now.get(chain, [])[-1:] == chains[chain][-1:]]


def witnesses_of(start: dict[str, Any]) -> Iterator[Witness]:
    """Return what a genuine start line names."""
    for one in start.get("named", ()):
        yield Witness(one["chain"], one["seq"], one["hash"])


def _named_in(path: Path, keys: Sequence[AuditKey]) -> list[Witness]:
    try:
        with path.open("rb") as file:
            line = parse_line(file.readline().removesuffix(b"\n"))
    except FileNotFoundError:
        return []
    if line is None or line.kind != START or not any(map(line.is_signed_with, keys)):
        return []
    return list(witnesses_of(line.members()))


def _last_line(chain: str, files: Sequence[Path]) -> Witness:
    for path in reversed(files):
        try:
            text = _last_whole_line(path)
        except FileNotFoundError:
            continue
        if text is not None:
            line = parse_line(text)
            return Witness(chain, -1 if line is None else line.seq, digest(text))
    return Witness(chain, 0, NOTHING_BEFORE)


def _last_whole_line(path: Path) -> bytes | None:
    """Return the last line that has its line feed, without it; what follows was torn off by a kill."""
    with path.open("rb") as file:
        start = file.seek(0, os.SEEK_END)
        tail = b""
        while start > 0:
            size = min(_BLOCK_BYTES, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            whole, found, _ = tail.rpartition(b"\n")
            if found and (b"\n" in whole or start == 0):
                return whole.rpartition(b"\n")[2]
    return None
