"""What a verification has to say."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is wrong: a file, its line, and the chain and number that the line has or should have."""

    file: Path | None = None
    line: int | None = None
    chain: str | None = None
    seq: int | None = None

    def __str__(self) -> str:
        where = "" if self.file is None else str(self.file) + ("" if self.line is None else f":{self.line}")
        named = "" if self.chain is None else f"chain {self.chain}"
        numbered = "" if self.seq is None else f"seq {self.seq}"
        return ", ".join(part for part in (where, named, numbered) if part)


@dataclass(frozen=True, slots=True)
class Finding:
    """`problem` is a stable name, `words` are for people and hold nothing of the line."""

    problem: str
    place: Place
    words: str


@dataclass(slots=True)
class Report:
    """Findings mean that the record is not whole; notes explain what is well and looks strange."""

    findings: list[Finding] = field(default_factory=list)
    notes: list[Finding] = field(default_factory=list)
    files: int = 0
    chains: int = 0
    live: int = 0  # chains that are being written
    events: int = 0

    @property
    def is_whole(self) -> bool:
        return not self.findings
