"""Events whose write failed, kept in memory until lines can be written again."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import Final

from app.audit.chained_lines import event_members
from app.errors import AuditUnavailable
from app.tokens.events import SUCCESS, Operation, TokenEvent

MAXIMUM_RETRIED: Final = 10_000
_READS: Final = frozenset({Operation.REVEAL, Operation.LIST})


class RetryBuffer:
    """Events in order of arrival, already formatted; `MAXIMUM_RETRIED` fit."""

    def __init__(self) -> None:
        self._members: deque[str] = deque()

    def __len__(self) -> int:
        return len(self._members)

    def add(self, at: float, event: TokenEvent, omitted: int) -> bool:
        """Keep the event; return `False` if the buffer is full or the event cannot be formatted."""
        if len(self._members) >= MAXIMUM_RETRIED:
            return False
        try:
            self._members.append(event_members(at, _with_final_outcome(event), omitted, retried=True))
        except Exception:  # noqa: BLE001  the writer's thread must survive an event that cannot be formatted
            return False
        return True

    def first(self, count: int) -> list[str]:
        return list(islice(self._members, count))

    def drop(self, count: int) -> None:
        """Remove the first `count` events, which are written."""
        for _ in range(count):
            self._members.popleft()


def _with_final_outcome(event: TokenEvent) -> TokenEvent:
    """Replace the outcome of a read: its caller got an error and no secret. A write keeps its outcome."""
    if event.outcome == SUCCESS and event.operation in _READS:
        return event._replace(outcome=AuditUnavailable.code, revealed=())
    return event
