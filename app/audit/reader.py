"""Search events for `audit show`. Lines may have been edited, so nothing about their content is assumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from app.audit.chained_lines import EVENT, Line, parse_line
from app.audit.log_files import opened
from app.audit.signing_key import AuditKey
from app.tokens.events import INTENT

EVENT_BYTES: Final = 64 * 1024  # an event has about 700; a longer one was edited
NO_OUTCOME: Final = "no_outcome"  # outcome of an intent that no event follows
_KINDS: Final = (b',"kind":"event",', b',"kind":"intent",')
_HEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Members that an event must have; `None` matches any."""

    user: str | None = None
    service: str | None = None
    operation: str | None = None
    outcome: str | None = None
    since: datetime | None = None

    def matches(self, event: dict[str, Any]) -> bool:
        required = (
            (self.user, "user_id"),
            (self.service, "service"),
            (self.operation, "operation"),
            (self.outcome, "outcome"),
        )
        if any(value is not None and event.get(name) != value for value, name in required):
            return False
        return self.since is None or str(event.get("time")) >= f"{self.since:%Y-%m-%dT%H:%M:%S.%f}Z"


@dataclass(frozen=True, slots=True)
class FoundEvent:
    """The members of an event's line, or of an intent's with `NO_OUTCOME`; `genuine` is `None` without a key."""

    event: dict[str, Any]
    genuine: bool | None


_Match = tuple[str, str, int, FoundEvent]  # time, chain and seq, which order the events


@dataclass(slots=True)
class SearchResult:
    """Events in order of time, and the number of lines with an event's form that cannot be read."""

    events: list[FoundEvent] = field(default_factory=list)
    unreadable: int = 0

    @property
    def doubtful(self) -> int:
        """The number of lines that differ from what the vault writes."""
        return self.unreadable + sum(one.genuine is False for one in self.events)


def search_events(files: Iterable[Path], wanted: EventFilter, *, keys: Sequence[AuditKey]) -> SearchResult:
    """Return the matching events of all chains, and the intents that no event follows; other lines are skipped.

    Checks each line's MAC if there are keys, and nothing else that `verify` checks. Raises `OSError` if a file cannot
    be read.
    """
    search = _Search(wanted, keys)
    unreadable = 0
    for path in files:
        for text in _lines(path):
            line = parse_line(text)
            if line is None or line.kind not in {EVENT, INTENT}:
                unreadable += len(text) == EVENT_BYTES and any(kind in text[:_HEAD_BYTES] for kind in _KINDS)
                continue
            event = _event(line)
            if event is None:
                unreadable += 1
            else:
                search.take(line, event)
    return SearchResult(search.found(), unreadable)


class _Search:
    """The matching events so far, and the intents without an outcome so far, in any order of lines."""

    def __init__(self, wanted: EventFilter, keys: Sequence[AuditKey]) -> None:
        self._wanted = wanted
        self._keys = keys
        self._events: list[_Match] = []
        self._intents: dict[tuple[str, str | None], _Match | None] = {}  # `None` if the intent does not match
        self._outcomes: set[tuple[str, str | None]] = set()  # those that were read before their intent

    def take(self, line: Line, event: dict[str, Any]) -> None:
        genuine = any(map(line.is_signed_with, self._keys)) if self._keys else None
        if line.kind == INTENT:
            event["outcome"] = NO_OUTCOME
        matches = self._wanted.matches(event)
        match = (str(event.get("time")), line.chain, line.seq, FoundEvent(event, genuine)) if matches else None
        change = (line.chain, line.intent)
        if line.kind == INTENT:
            if change not in self._outcomes:
                self._intents[change] = match
            return
        if line.intent is not None and genuine is not False:
            if change in self._intents:
                del self._intents[change]
            else:
                self._outcomes.add(change)
        if match is not None:
            self._events.append(match)

    def found(self) -> list[FoundEvent]:
        """Return the events and the intents without an outcome, in order of time."""
        intents = [match for match in self._intents.values() if match is not None]
        return [event for *_, event in sorted([*self._events, *intents], key=itemgetter(0, 1, 2))]


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines without their line feeds; of a line longer than `EVENT_BYTES`, only that many bytes."""
    with opened(path) as file:
        beginning = True
        while text := file.readline(EVENT_BYTES):
            if beginning:
                yield text.removesuffix(b"\n")
            beginning = text.endswith(b"\n")


def _event(line: Line) -> dict[str, Any] | None:
    """Return the line's members, or `None` if it was edited into something that is not an event."""
    try:
        event = line.members()
    except (ValueError, RecursionError):
        return None
    return event if all(map(_is_plain, event.values())) else None


def _is_plain(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, (str, int, float)) for one in values)
