"""Attempts that were made while their record failed: kept in memory until lines can be written again."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import islice
from typing import Final

from app.audit.members import event_members
from app.errors import AuditUnavailable
from app.tokens.events import SUCCESS, Operation, TokenEvent

MAXIMUM_LATE: Final = 10_000
_READS: Final = frozenset({Operation.REVEAL, Operation.LIST})


class RetryBuffer:
    """Events in the order in which they came, already as text; whoever finds no room is only counted elsewhere."""

    def __init__(self, *, maximum: int = MAXIMUM_LATE) -> None:
        self._maximum = maximum
        self._members: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, at: float, event: TokenEvent, omitted: int) -> bool:
        """Return whether the event will be written."""
        if len(self._members) >= self._maximum:
            return False
        try:
            self._members.append(event_members(at, _as_it_ended(event), omitted, late=True))
        except Exception:  # noqa: BLE001  the writer's thread must live on, and would meet this event again
            return False
        return True

    def first(self, count: int) -> list[str]:
        return list(islice(self._members, count))

    def drop(self, count: int) -> None:
        """Forget the first ones, which are written."""
        for _ in range(count):
            self._members.popleft()


def _as_it_ended(event: TokenEvent) -> TokenEvent:
    """Return what came of the attempt: its caller was refused, so what was read has not left; a write has happened."""
    if event.outcome == SUCCESS and event.operation in _READS:
        return replace(event, outcome=AuditUnavailable.code, revealed=())
    return event
