"""What a process says at its start about the chains beside it.

A chain without an end may have been killed, or its tail may have been cut; its own lines cannot tell. So whoever
starts next names the last genuine line of every chain that nobody writes any more and that no start has named yet, and
says whether anything else followed it. From then on neither a line nor a whole chain can go unnoticed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.audit.keys import AuditKey
from app.audit.lines import MAXIMUM_LINE_BYTES, NOTHING_BEFORE, START, Line, parse_line
from app.audit.log_files import LogFiles, bytes_of_whole_lines, is_being_written, lines_from_the_end, opened


@dataclass(frozen=True, slots=True)
class ChainCheckpoint:
    """A chain's end as another process saw it.

    `seq` and `hash` are those of its last genuine line, `seq` 0 where it had none. `followed` where whole lines came
    after it that are not genuine. `size` counts the bytes of all its whole lines,
    genuine or not: copies of earlier lines are genuine too, and are seen by it alone once they are gone again. Older
    starts have no size, and -1 for a last line that was none.
    """

    chain: str
    seq: int
    hash: str
    size: int | None = None
    followed: bool = False

    def members(self) -> dict[str, Any]:
        """Return what a start says of it."""
        said = {"chain": self.chain, "seq": self.seq, "hash": self.hash, "size": self.size}
        return {**said, "followed": True} if self.followed else said


def unnamed_chains(family: LogFiles, *, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
    """Return the ends of the chains that nobody writes and no start signed with one of `keys` names.

    Raises `OSError`. A file that goes away meanwhile is somebody's housekeeping.
    """
    chains = family.chains()
    named = {witness.chain for files in chains.values() for witness in _named_in(files[0], keys)}
    dead = [chain for chain, files in chains.items() if chain not in named and not is_being_written(files[-1])]
    # a chain goes on in a new file before it lets go of the old one, so one that did so meanwhile shows by now
    now = family.chains() if dead else {}
    ends = [chain for chain in dead if now.get(chain, [])[-1:] == chains[chain][-1:]]
    return [_end_of(chain, chains[chain], keys) for chain in ends]


def checkpoints_of(start: dict[str, Any]) -> Iterator[ChainCheckpoint]:
    """Return what a genuine start line names."""
    for one in start.get("named", ()):
        seq = one["seq"]
        yield ChainCheckpoint(one["chain"], max(seq, 0), one["hash"], one.get("size"), one.get("followed", seq < 0))


def _named_in(path: Path, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
    try:
        line = _first_line(path)
    except FileNotFoundError:
        return []
    if line is None or line.kind != START or _key_of(line, keys) is None:
        return []
    return list(checkpoints_of(line.members()))


def _end_of(chain: str, files: Sequence[Path], keys: Sequence[AuditKey]) -> ChainCheckpoint:
    """Look for the chain's last genuine line, from its end on.

    A chain has one key, which its first line tells. Where no key is that line's, any line of the chain will do: its
    hash lets `verify`, which may have the key, believe it or not.
    """
    sizes = {path: bytes_of_whole_lines(path) for path in files}
    size = sum(sizes.values())
    if size == 0:
        return ChainCheckpoint(chain, 0, NOTHING_BEFORE, size)
    first = _first_line(next(path for path in files if sizes[path]))
    key = None if first is None or first.chain != chain else _key_of(first, keys)
    followed = False
    for path in reversed(files):
        for text in lines_from_the_end(path):
            line = parse_line(text)
            if line is not None and line.chain == chain and (key is None or line.is_signed_with(key)):
                return ChainCheckpoint(chain, line.seq, line.hash, size, followed)
            followed = True
    return ChainCheckpoint(chain, 0, NOTHING_BEFORE, size, followed=True)


def _first_line(path: Path) -> Line | None:
    with opened(path) as file:
        return parse_line(file.readline(MAXIMUM_LINE_BYTES).removesuffix(b"\n"))


def _key_of(line: Line, keys: Sequence[AuditKey]) -> AuditKey | None:
    return next((key for key in keys if line.is_signed_with(key)), None)
