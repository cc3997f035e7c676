"""Checkpoints: the ends of other chains, which a process names in its start line.

If a chain has no end line, its process was killed or its last lines were removed; the chain alone does not show which.
So each process
that starts names the last genuine line of every chain that no process writes and no earlier start names, and whether
other lines follow it. After that, removing a line or a whole chain is detected.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.audit.chained_lines import MAXIMUM_LINE_BYTES, NOTHING_BEFORE, START, Line, parse_line
from app.audit.log_files import LogFiles, bytes_of_complete_lines, is_being_written, lines_from_the_end, opened
from app.audit.signing_key import AuditKey


@dataclass(frozen=True, slots=True)
class ChainCheckpoint:
    """A chain's end as another process saw it.

    `seq` and `hash` are those of its last genuine line; `seq` is 0 if it has none. `followed` means that complete lines
    which are not genuine come after it. `size` counts the bytes of all complete lines, genuine or not: only this shows
    that copies of earlier lines, which are genuine, were appended and removed again.
    """

    chain: str
    seq: int
    hash: str
    size: int
    followed: bool = False

    def members(self) -> dict[str, Any]:
        """Return the JSON object in the start line's `named`."""
        members = {"chain": self.chain, "seq": self.seq, "hash": self.hash, "size": self.size}
        return {**members, "followed": True} if self.followed else members


def checkpoints_of(start: dict[str, Any]) -> Iterator[ChainCheckpoint]:
    """Return the checkpoints in the members of a genuine start line."""
    for one in start.get("named", ()):
        yield ChainCheckpoint(one["chain"], one["seq"], one["hash"], one["size"], one.get("followed", False))


def unnamed_chains(log_files: LogFiles, *, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
    """Return checkpoints of the chains that no process writes and no start signed with one of `keys` names.

    Skips files that disappear during the call, because somebody may archive them. Raises `OSError`.
    """
    chains = log_files.chains()
    named = {checkpoint.chain for files in chains.values() for checkpoint in _named_in(files[0], keys)}
    dead = [chain for chain, files in chains.items() if chain not in named and not is_being_written(files[-1])]
    # a chain locks its next file before it unlocks the previous one, so a chain that rotated since has a new file now
    now = log_files.chains() if dead else {}
    ends = [chain for chain in dead if now.get(chain, [])[-1:] == chains[chain][-1:]]
    return [_end_of(chain, chains[chain], keys) for chain in ends]


def _named_in(path: Path, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
    try:
        line = _first_line(path)
    except FileNotFoundError:
        return []
    if line is None or line.kind != START or _key_of(line, keys) is None:
        return []
    return list(checkpoints_of(line.members()))


def _end_of(chain: str, files: Sequence[Path], keys: Sequence[AuditKey]) -> ChainCheckpoint:
    """Find the chain's last genuine line, reading backwards, but not beyond a line longer than an audit line may be.

    A chain has one key, which its first line shows. If that key is not in `keys`, the last line of the chain counts as
    genuine: `verify`, which may have the key, checks its hash.
    """
    sizes = {path: bytes_of_complete_lines(path) for path in files}
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
