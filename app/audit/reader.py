"""Events as people look for them. Of lines that somebody has edited nothing is taken for granted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

from app.audit.keys import AuditKey
from app.audit.lines import EVENT, Line, parse_line
from app.audit.log_files import opened

EVENT_BYTES: Final = 64 * 1024  # one has 700; whatever is longer was edited
_KIND: Final = b',"kind":"event",'
_HEAD_BYTES: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which events; `None` is any."""

    user: str | None = None
    service: str | None = None
    operation: str | None = None
    outcome: str | None = None
    since: datetime | None = None

    def has(self, event: dict[str, Any]) -> bool:
        asked = (
            (self.user, "user_id"),
            (self.service, "service"),
            (self.operation, "operation"),
            (self.outcome, "outcome"),
        )
        if any(value is not None and event.get(name) != value for value, name in asked):
            return False
        return self.since is None or str(event.get("time")) >= f"{self.since:%Y-%m-%dT%H:%M:%S.%f}Z"


@dataclass(frozen=True, slots=True)
class Kept:
    """An event as a line says it; `genuine` is `None` where no key was at hand to tell."""

    event: dict[str, Any]
    genuine: bool | None


@dataclass(slots=True)
class Reading:
    """What was found, in the order of time, and how many lines have an event's form and cannot be read."""

    kept: list[Kept] = field(default_factory=list)
    unreadable: int = 0

    @property
    def doubtful(self) -> int:
        """How many lines are not as the vault has written them."""
        return self.unreadable + sum(one.genuine is False for one in self.kept)


def read_events(files: Iterable[Path], wanted: Wanted, *, keys: Sequence[AuditKey]) -> Reading:
    """Return the wanted events of all chains; lines that are none are passed over.

    Each line's MAC is checked where there are keys, and nothing else of what `verify` does. Raises `OSError` where a
    file cannot be read.
    """
    reading = Reading()
    found: list[tuple[str, str, int, Kept]] = []
    for path in files:
        for text in _lines(path):
            line = parse_line(text)
            if line is None or line.kind != EVENT:
                reading.unreadable += len(text) == EVENT_BYTES and _KIND in text[:_HEAD_BYTES]
                continue
            event = _event(line)
            if event is None:
                reading.unreadable += 1
            elif wanted.has(event):
                genuine = any(map(line.is_signed_with, keys)) if keys else None
                found.append((str(event.get("time")), line.chain, line.seq, Kept(event, genuine)))
    reading.kept = [kept for *_, kept in sorted(found, key=itemgetter(0, 1, 2))]
    return reading


def _lines(path: Path) -> Iterator[bytes]:
    """Yield lines without their line feeds, and of longer ones than an event has the first part."""
    with opened(path) as file:
        beginning = True
        while text := file.readline(EVENT_BYTES):
            if beginning:
                yield text.removesuffix(b"\n")
            beginning = text.endswith(b"\n")


def _event(line: Line) -> dict[str, Any] | None:
    """Return what the line says, or `None` where it was edited into something that no event is."""
    try:
        event = line.members()
    except (ValueError, RecursionError):
        return None
    return event if all(map(_is_plain, event.values())) else None


def _is_plain(value: object) -> bool:
    values = value if isinstance(value, list) else [value]
    return all(one is None or isinstance(one, (str, int, float)) for one in values)
