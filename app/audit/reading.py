"""Events as people look for them. Nothing is verified here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.audit.lines import EVENT, parse_line

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime
    from pathlib import Path


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


def events_in(files: Iterable[Path], wanted: Wanted) -> list[dict[str, Any]]:
    """Return the events of all chains in the order of their times; lines that are none are passed over.

    Raises `OSError` where a file cannot be read.
    """
    found = [event for path in files for event in _events(path) if wanted.has(event)]
    return sorted(found, key=lambda event: (str(event.get("time")), event["chain"], event["seq"]))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for text in file:
            line = parse_line(text.removesuffix(b"\n"))
            if line is None or line.kind != EVENT:
                continue
            try:
                yield line.members()
            except ValueError:  # edited; `verify` says so
                continue
