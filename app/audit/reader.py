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

EVENT_BYTES: Final = 64 * 1024  # an event has about 700; a longer one was edited
_KIND: Final = b',"kind":"event",'
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
    """The members of an event's line; `genuine` is `None` if there was no key to check it."""

    event: dict[str, Any]
    genuine: bool | None


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
    """Return the matching events of all chains; lines that are not events are skipped.

    Checks each line's MAC if there are keys, and nothing else that `verify` checks. Raises `OSError` if a file cannot
    be read.
    """
    result = SearchResult()
    found: list[tuple[str, str, int, FoundEvent]] = []
    for path in files:
        for text in _lines(path):
            line = parse_line(text)
            if line is None or line.kind != EVENT:
                result.unreadable += len(text) == EVENT_BYTES and _KIND in text[:_HEAD_BYTES]
                continue
            event = _event(line)
            if event is None:
                result.unreadable += 1
            elif wanted.matches(event):
                genuine = any(map(line.is_signed_with, keys)) if keys else None
                found.append((str(event.get("time")), line.chain, line.seq, FoundEvent(event, genuine)))
    result.events = [event for *_, event in sorted(found, key=itemgetter(0, 1, 2))]
    return result


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
