"""Whether a record is as it was written: nothing edited, removed, inserted, reordered or cut off.

Every line is checked against its MAC, and each chain line by line. `partial` means that not everything is at hand:
what lies outside of the given files is then not missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.audit.chain_checkpoint import ChainCheckpoint, checkpoints_of
from app.audit.findings import Finding, Place, Report
from app.audit.keys import AuditKey
from app.audit.lines import END, EVENT, MAXIMUM_LINE_BYTES, NOTHING_BEFORE, START, Line, parse_line
from app.audit.log_files import chain_of_file, is_being_written, opened


@dataclass(slots=True)
class _Chain:
    """How far a chain has come: its last genuine line, how many lines followed that are not, and what ends a file."""

    id: str
    key: AuditKey | None = None
    seq: int = 0
    hash: str = NOTHING_BEFORE
    size: int = 0  # of its whole lines, genuine or not
    ended: bool = False
    place: Place = field(default_factory=Place)
    files: list[Path] = field(default_factory=list)
    unbelieved: int = 0
    broken: bool = False
    torn: list[Place] = field(default_factory=list)


class Verifier:
    """Takes files in any order; those of one chain are put into theirs by name, others are read in the order given."""

    def __init__(self, *, keys: Sequence[AuditKey], partial: bool = False) -> None:
        self._keys = keys
        self._partial = partial
        self._report = Report()
        self._chains: dict[str, _Chain] = {}
        self._witnesses: dict[str, list[tuple[ChainCheckpoint, str]]] = {}

    def verify(self, files: Iterable[Path]) -> Report:
        """Read all of it and report. Raises `OSError` where a file cannot be read."""
        named: list[Path] = []
        others: list[Path] = []
        for path in _once_each(files):
            self._report.files += 1
            (named if chain_of_file(path) else others).append(path)
        for path in [*sorted(named, key=lambda path: path.name), *others]:
            self._read(path)
        for chain in self._chains.values():
            self._conclude(chain)
        self._look_for_missing_chains()
        self._report.chains = len(self._chains)
        return self._report

    # --- line by line

    def _read(self, path: Path) -> None:
        owner = chain_of_file(path)
        if owner is not None:
            self._chain(owner).files.append(path)
        with opened(path) as file:
            number = 0
            while text := file.readline(MAXIMUM_LINE_BYTES):
                number += 1
                place = Place(path, number, owner)
                if not text.endswith(b"\n"):
                    self._take_torn(text, place)
                else:
                    self._take(text[:-1], place)

    def _take(self, text: bytes, place: Place) -> None:
        owner = place.chain
        line = parse_line(text)
        of = owner or (line.chain if line else None)
        if of is not None:
            self._chain(of).size += len(text) + 1
        if line is None:
            if owner is not None:  # elsewhere it is a log line
                self._disbelieve(self._chain(owner), place, "not_a_line", "this is no line of an audit trail")
            return
        claimed = Place(place.file, place.line, line.chain, line.seq)
        if owner is not None and line.chain != owner:
            self._disbelieve(self._chain(owner), claimed, "foreign_line", f"inserted: the file is chain {owner}'s")
            return
        chain = self._chain(line.chain)
        if not self._is_genuine(chain, line):
            words = "edited, or signed with another key: its MAC is not that of its bytes"
            self._disbelieve(chain, claimed, "wrong_mac", words)
            return
        self._follow(chain, line, claimed)

    def _is_genuine(self, chain: _Chain, line: Line) -> bool:
        if chain.key is not None:
            return line.is_signed_with(chain.key)
        chain.key = next((key for key in self._keys if line.is_signed_with(key)), None)
        return chain.key is not None

    def _follow(self, chain: _Chain, line: Line, place: Place) -> None:
        """Hold a genuine line against the one before it."""
        expected = chain.seq + 1
        if line.seq < expected:
            words = f"duplicated, or out of order: seq {chain.seq} came before it"
            self._find(chain, Finding("out_of_order", place, words))
            return
        if line.seq > expected + chain.unbelieved:
            missing = _range(expected, line.seq - 1)
            if self._partial and not chain.seq and not chain.unbelieved:
                self._note("begins_later", place, f"{missing} not in these files")
            else:
                self._find(chain, Finding("missing", place, f"before it {missing} missing"))
        elif line.seq == expected and line.prev != chain.hash:
            self._find(chain, Finding("wrong_prev", place, "it does not follow the line before it"))
        if chain.ended:
            self._find(chain, Finding("after_end", place, "it follows the chain's end"))
        self._note_torn(chain, "half a line, after which the chain goes on")
        chain.seq, chain.hash, chain.place, chain.unbelieved = line.seq, line.hash, place, 0
        self._understand(chain, line, place)

    def _understand(self, chain: _Chain, line: Line, place: Place) -> None:
        if line.kind == EVENT:
            self._report.events += 1
        elif line.kind == END:
            chain.ended = True
        elif line.kind == START:
            for witness in checkpoints_of(line.members()):
                self._witnesses.setdefault(witness.chain, []).append((witness, chain.id))
        if (line.kind == START) is not (line.seq == 1):
            self._find(chain, Finding("wrong_start", place, "a start is the first line of its chain, and only that"))

    def _take_torn(self, text: bytes, place: Place) -> None:
        """Note what follows the last line feed of a file: a write that a kill or a full disk has cut short."""
        owner = place.chain
        if owner is not None:
            self._chain(owner).torn.append(place)
        elif text.startswith(b'{"audit":'):
            self._note("torn", place, "half a line at the end of the file")

    def _disbelieve(self, chain: _Chain, place: Place, problem: str, words: str) -> None:
        chain.unbelieved += 1
        if chain.place.file is None:
            chain.place = place
        self._find(chain, Finding(problem, place, words))

    # --- chain by chain

    def _conclude(self, chain: _Chain) -> None:
        """Say whether the chain's last line is its last."""
        file = chain.place.file or (chain.files[-1] if chain.files else None)
        place = Place(file, chain.place.line, chain.id, chain.seq)
        witnesses = self._witnesses.get(chain.id, [])
        for witness, by in witnesses:
            self._compare(chain, witness, by, place)
        if chain.ended:
            for torn in chain.torn:
                self._find(chain, Finding("after_end", torn, "half a line follows the chain's end"))
        elif witnesses:
            if not chain.broken and chain.seq >= max(witness.seq for witness, _ in witnesses):
                by = witnesses[0][1]
                self._note("interrupted", place, f"interrupted, witnessed by chain {by}: it ended here when that began")
            self._note_torn(chain, "half a line, cut short by the interruption")
        elif chain.files and is_being_written(chain.files[-1]):
            self._report.live += 1
            self._note("live", place, "it is being written")
            self._note_torn(chain, "half a line of a write that is under way")
        elif self._partial:
            self._note("goes_on", place, "its end is not in these files")
            self._note_torn(chain, "half a line")
        else:
            words = "no end: killed and not yet followed by a start, or the tail was cut"
            self._find(chain, Finding("no_end", place, words))
            self._note_torn(chain, "half a line")

    def _compare(self, chain: _Chain, witness: ChainCheckpoint, by: str, place: Place) -> None:
        """Hold a chain's end against what another one saw of it."""
        saw = f"chain {by} saw it end with seq {witness.seq}"
        if witness.followed:
            self._find(chain, Finding("was_followed", place, f"{saw}, and then by lines that are not genuine"))
        if witness.seq > chain.seq + chain.unbelieved:
            if self._partial:
                self._note("goes_on", place, f"{saw}; {_range(chain.seq + 1, witness.seq)} not in these files")
            else:
                self._find(chain, Finding("truncated", place, f"truncated: {saw}"))
        elif witness.seq < chain.seq or (witness.seq == chain.seq and witness.hash != chain.hash):
            self._find(chain, Finding("after_witness", place, f"it goes on, or ends otherwise: {saw}"))
        elif not self._partial and not chain.broken and witness.size not in {None, chain.size}:
            words = f"{saw} and with {witness.size} bytes in its lines, not {chain.size}: some were taken out since"
            self._find(chain, Finding("other_size", place, words))

    def _look_for_missing_chains(self) -> None:
        for chain, witnesses in self._witnesses.items():
            if chain not in self._chains:
                witness, by = witnesses[0]
                words = f"the whole chain is missing: chain {by} names it"
                finding = Finding("missing_chain", Place(chain=chain, seq=max(witness.seq, 0)), words)
                (self._report.notes if self._partial else self._report.findings).append(finding)

    # --- book-keeping

    def _chain(self, chain: str) -> _Chain:
        return self._chains.setdefault(chain, _Chain(chain))

    def _find(self, chain: _Chain, finding: Finding) -> None:
        chain.broken = True
        self._report.findings.append(finding)

    def _note(self, problem: str, place: Place, words: str) -> None:
        self._report.notes.append(Finding(problem, place, words))

    def _note_torn(self, chain: _Chain, words: str) -> None:
        for place in chain.torn:
            self._note("torn", place, words)
        chain.torn.clear()


def _once_each(files: Iterable[Path]) -> Iterator[Path]:
    """Leave out what was named before, also under another name, unless that says another chain; raises `OSError`."""
    names: dict[tuple[int, int], dict[str | None, Path]] = {}
    for path in files:
        status = path.stat()
        names.setdefault((status.st_dev, status.st_ino), {}).setdefault(chain_of_file(path), path)
    for by_chain in names.values():
        yield from (path for chain, path in by_chain.items() if chain is not None or len(by_chain) == 1)


def _range(first: int, last: int) -> str:
    return f"seq {first} is" if first == last else f"seq {first} to {last} are"
