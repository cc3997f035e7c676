"""Verification: find lines that were edited, removed, inserted, reordered or cut off.

The MAC of every line is checked, and each chain line by line. `partial` means that some files of the trail are
elsewhere: their lines are not reported as missing.

A change without an outcome is a warning and no finding: the line is whole, and a kill leaves one. In a chain that is
being written, a change counts as one only after a minute of later lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from app.audit.chain_checkpoint import ChainCheckpoint, checkpoints_of
from app.audit.chained_lines import END, EVENT, MAXIMUM_LINE_BYTES, NOTHING_BEFORE, START, Line, parse_line
from app.audit.log_files import chain_of_file, is_being_written, opened
from app.audit.signing_key import AuditKey
from app.tokens.events import INTENT

_LONGEST_CHANGE: Final = timedelta(minutes=1)  # with a wide margin for its event, which may wait for a slow disk


@dataclass(frozen=True, slots=True)
class Location:
    """A file, a line in it, and the chain and seq that the line has or should have."""

    file: Path | None = None
    line: int | None = None
    chain: str | None = None
    seq: int | None = None

    def __str__(self) -> str:
        file = "" if self.file is None else str(self.file) + ("" if self.line is None else f":{self.line}")
        chain = "" if self.chain is None else f"chain {self.chain}"
        seq = "" if self.seq is None else f"seq {self.seq}"
        return ", ".join(part for part in (file, chain, seq) if part)


@dataclass(frozen=True, slots=True)
class ChainFinding:
    """`problem` is a stable name; `detail` is for people and quotes nothing from the line."""

    problem: str
    location: Location
    detail: str


@dataclass(slots=True)
class VerificationReport:
    """The trail is intact if there are no findings.

    Warnings name changes that were announced and have no outcome. Notes explain states that are harmless but look
    unusual.
    """

    findings: list[ChainFinding] = field(default_factory=list)
    warnings: list[ChainFinding] = field(default_factory=list)
    notes: list[ChainFinding] = field(default_factory=list)
    files: int = 0
    chains: int = 0
    live: int = 0  # chains that are being written
    events: int = 0

    @property
    def is_intact(self) -> bool:
        return not self.findings


@dataclass(frozen=True, slots=True)
class _Intent:
    location: Location
    time: str


@dataclass(slots=True)
class _ChainState:
    """The state of one chain during verification."""

    id: str
    key: AuditKey | None = None
    seq: int = 0  # of the last genuine line, as are `hash` and `location`
    hash: str = NOTHING_BEFORE
    location: Location = field(default_factory=Location)
    not_genuine: int = 0  # lines since then
    size: int = 0  # of all complete lines, genuine or not
    files: list[Path] = field(default_factory=list)
    torn: list[Location] = field(default_factory=list)  # half lines at the end of a file
    intents: dict[str, _Intent] = field(default_factory=dict)  # those without an outcome so far
    time: str = ""  # the latest of its lines
    ended: bool = False
    has_findings: bool = False

    def ends_before(self, checkpoint: ChainCheckpoint) -> bool:
        """Whether lines that the checkpoint saw are not in the files."""
        return checkpoint.seq > self.seq + self.not_genuine

    def has_lost(self, intent: str) -> bool:
        """Whether the chain went on for so long after an intent that its outcome will not follow."""
        at = self.intents[intent].time
        return bool(at) and datetime.fromisoformat(self.time) - datetime.fromisoformat(at) > _LONGEST_CHANGE

    def open_changes(self) -> str:
        """Return the end of a note about a chain whose next lines may hold outcomes."""
        return f"; changes whose outcome is not recorded yet: {len(self.intents)}" if self.intents else ""


class Verifier:
    """Verifies files given in any order. Files named after a chain are sorted by name; others keep their order."""

    def __init__(self, *, keys: Sequence[AuditKey], partial: bool = False) -> None:
        self._keys = keys
        self._partial = partial
        self._report = VerificationReport()
        self._chains: dict[str, _ChainState] = {}
        self._checkpoints: dict[str, list[tuple[ChainCheckpoint, str]]] = {}  # each with the chain that states it

    def verify(self, files: Iterable[Path]) -> VerificationReport:
        """Read all files and report. Raises `OSError` if a file cannot be read."""
        named: list[Path] = []
        others: list[Path] = []
        for path in _without_duplicates(files):
            self._report.files += 1
            (named if chain_of_file(path) else others).append(path)
        for path in [*sorted(named, key=lambda path: path.name), *others]:
            self._read(path)
        for chain in self._chains.values():
            self._conclude(chain)
        self._find_missing_chains()
        self._report.chains = len(self._chains)
        return self._report

    def _read(self, path: Path) -> None:
        owner = chain_of_file(path)
        if owner is not None:
            self._chain(owner).files.append(path)
        with opened(path) as file:
            number = 0
            while text := file.readline(MAXIMUM_LINE_BYTES):
                number += 1
                location = Location(path, number, owner)
                if not text.endswith(b"\n"):
                    self._take_torn(text, location)
                else:
                    self._take(text[:-1], location)

    def _take(self, text: bytes, location: Location) -> None:
        owner = location.chain
        line = parse_line(text)
        counted_in = owner or (line.chain if line else None)
        if counted_in is not None:
            self._chain(counted_in).size += len(text) + 1
        if line is None:
            if owner is not None:  # in any other file it is a log line
                self._reject(self._chain(owner), location, "not_a_line", "this is not a line of an audit trail")
            return
        claimed = Location(location.file, location.line, line.chain, line.seq)
        if owner is not None and line.chain != owner:
            self._reject(self._chain(owner), claimed, "foreign_line", f"inserted: the file is chain {owner}'s")
            return
        chain = self._chain(line.chain)
        if not self._is_genuine(chain, line):
            detail = "edited, or signed with another key: its MAC does not match its bytes"
            self._reject(chain, claimed, "wrong_mac", detail)
            return
        self._follow(chain, line, claimed)

    def _is_genuine(self, chain: _ChainState, line: Line) -> bool:
        if chain.key is not None:
            return line.is_signed_with(chain.key)
        chain.key = next((key for key in self._keys if line.is_signed_with(key)), None)
        return chain.key is not None

    def _follow(self, chain: _ChainState, line: Line, location: Location) -> None:
        """Compare a genuine line with the one before it."""
        expected = chain.seq + 1
        if line.seq < expected:
            detail = f"duplicated, or out of order: seq {chain.seq} came before it"
            self._find(chain, ChainFinding("out_of_order", location, detail))
            return
        if line.seq > expected + chain.not_genuine:
            missing = _range(expected, line.seq - 1)
            if self._partial and not chain.seq and not chain.not_genuine:
                self._note("begins_later", location, f"{missing} not in these files")
            else:
                self._find(chain, ChainFinding("missing", location, f"before it {missing} missing"))
        elif line.seq == expected and line.prev != chain.hash:
            self._find(chain, ChainFinding("wrong_prev", location, "it does not follow the line before it"))
        if chain.ended:
            self._find(chain, ChainFinding("after_end", location, "it follows the chain's end"))
        self._note_torn(chain, "half a line, after which the chain continues")
        chain.seq, chain.hash, chain.location, chain.not_genuine = line.seq, line.hash, location, 0
        self._interpret(chain, line, location)

    def _interpret(self, chain: _ChainState, line: Line, location: Location) -> None:
        chain.time = max(chain.time, line.time)
        if line.kind == EVENT:
            self._report.events += 1
            if line.intent is not None:
                chain.intents.pop(line.intent, None)
        elif line.kind == INTENT and line.intent is not None:
            chain.intents[line.intent] = _Intent(location, line.time)
        elif line.kind == END:
            chain.ended = True
        elif line.kind == START:
            for checkpoint in checkpoints_of(line.members()):
                self._checkpoints.setdefault(checkpoint.chain, []).append((checkpoint, chain.id))
        if (line.kind == START) is not (line.seq == 1):
            detail = "a start must be the first line of its chain, and the first line a start"
            self._find(chain, ChainFinding("wrong_start", location, detail))

    def _take_torn(self, text: bytes, location: Location) -> None:
        """Note the bytes after a file's last line feed: a write cut short by a kill or a full disk."""
        owner = location.chain
        if owner is not None:
            self._chain(owner).torn.append(location)
        elif text.startswith(b'{"audit":'):
            self._note("torn", location, "half a line at the end of the file")

    def _reject(self, chain: _ChainState, location: Location, problem: str, detail: str) -> None:
        chain.not_genuine += 1
        if chain.location.file is None:
            chain.location = location
        self._find(chain, ChainFinding(problem, location, detail))

    def _conclude(self, chain: _ChainState) -> None:
        """Decide whether the last line found is the chain's last line."""
        file = chain.location.file or (chain.files[-1] if chain.files else None)
        end = Location(file, chain.location.line, chain.id, chain.seq)
        checkpoints = self._checkpoints.get(chain.id, [])
        for checkpoint, by in checkpoints:
            self._compare(chain, checkpoint, by, end)
        if chain.ended:
            for torn in chain.torn:
                self._find(chain, ChainFinding("after_end", torn, "half a line follows the chain's end"))
        elif checkpoints:
            if not chain.has_findings and chain.seq >= max(checkpoint.seq for checkpoint, _ in checkpoints):
                by = checkpoints[0][1]
                self._note("interrupted", end, f"interrupted; it ended here when chain {by} started")
            self._note_torn(chain, "half a line, cut short by the interruption")
        elif chain.files and is_being_written(chain.files[-1]):
            self._report.live += 1
            self._warn_of_changes_without_outcome(chain, [one for one in chain.intents if chain.has_lost(one)])
            self._note("live", end, f"it is being written{chain.open_changes()}")
            self._note_torn(chain, "half a line, which is being written")
            return
        elif self._partial:
            self._note("goes_on", end, f"its end is not in these files{chain.open_changes()}")
            self._note_torn(chain, "half a line")
            return
        else:
            detail = "no end: killed and not yet followed by a start, or the tail was cut"
            self._find(chain, ChainFinding("no_end", end, detail))
            self._note_torn(chain, "half a line")
        if not self._partial or not any(chain.ends_before(checkpoint) for checkpoint, _ in checkpoints):
            self._warn_of_changes_without_outcome(chain, list(chain.intents))

    def _warn_of_changes_without_outcome(self, chain: _ChainState, intents: Sequence[str]) -> None:
        """Warn of these changes, and count them no longer as open."""
        detail = "a change without an outcome: the process ended first, or lost the event, so it may have been made"
        for intent in intents:
            self._report.warnings.append(ChainFinding("no_outcome", chain.intents.pop(intent).location, detail))

    def _compare(self, chain: _ChainState, checkpoint: ChainCheckpoint, by: str, end: Location) -> None:
        """Compare a chain's end with a checkpoint of it."""
        saw = f"chain {by} saw it end with seq {checkpoint.seq}"
        if checkpoint.followed:
            self._find(chain, ChainFinding("was_followed", end, f"{saw}, and then lines that are not genuine"))
        if chain.ends_before(checkpoint):
            if self._partial:
                missing = _range(chain.seq + 1, checkpoint.seq)
                self._note("goes_on", end, f"{saw}; {missing} not in these files{chain.open_changes()}")
            else:
                self._find(chain, ChainFinding("truncated", end, f"truncated: {saw}"))
        elif checkpoint.seq < chain.seq or (checkpoint.seq == chain.seq and checkpoint.hash != chain.hash):
            self._find(chain, ChainFinding("after_checkpoint", end, f"it continues, or ends differently: {saw}"))
        elif not self._partial and not chain.has_findings and checkpoint.size != chain.size:
            detail = f"{saw} and {checkpoint.size} bytes in its lines, not {chain.size}: lines were removed since"
            self._find(chain, ChainFinding("other_size", end, detail))

    def _find_missing_chains(self) -> None:
        for chain, checkpoints in self._checkpoints.items():
            if chain not in self._chains:
                checkpoint, by = checkpoints[0]
                detail = f"the whole chain is missing: chain {by} names it"
                finding = ChainFinding("missing_chain", Location(chain=chain, seq=checkpoint.seq), detail)
                (self._report.notes if self._partial else self._report.findings).append(finding)

    def _chain(self, chain: str) -> _ChainState:
        return self._chains.setdefault(chain, _ChainState(chain))

    def _find(self, chain: _ChainState, finding: ChainFinding) -> None:
        chain.has_findings = True
        self._report.findings.append(finding)

    def _note(self, problem: str, location: Location, detail: str) -> None:
        self._report.notes.append(ChainFinding(problem, location, detail))

    def _note_torn(self, chain: _ChainState, detail: str) -> None:
        for location in chain.torn:
            self._note("torn", location, detail)
        chain.torn.clear()


def _without_duplicates(files: Iterable[Path]) -> Iterator[Path]:
    """Yield each file once, also if it has several names, unless these name different chains; raises `OSError`."""
    names: dict[tuple[int, int], dict[str | None, Path]] = {}
    for path in files:
        status = path.stat()
        names.setdefault((status.st_dev, status.st_ino), {}).setdefault(chain_of_file(path), path)
    for by_chain in names.values():
        yield from (path for chain, path in by_chain.items() if chain is not None or len(by_chain) == 1)


def _range(first: int, last: int) -> str:
    return f"seq {first} is" if first == last else f"seq {first} to {last} are"
