"""A limit on recorded refusals, so that repeated invalid calls cannot fill the disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.errors import BodyTooLarge, Forbidden, InvalidRequest, MalformedBody, RateLimited, Unauthenticated
from app.tokens.events import TokenEvent

FEW_PER_SECOND: Final = 10
REFUSALS_PER_SECOND: Final = 100
_FEW: Final = frozenset({Unauthenticated.code, RateLimited.code})
_REFUSALS: Final = frozenset({Forbidden.code, InvalidRequest.code, MalformedBody.code, BodyTooLarge.code})


@dataclass(slots=True)
class _Second:
    """The number of refusals admitted in the second that `began`."""

    began: float = float("-inf")
    admitted: int = 0


class RefusalLimiter:
    """Admits per service and second 10 `unauthenticated`, 10 `rate_limited` and 100 other refusals before a handler.

    All callers without a valid key count as one service. The refusals left out are counted, and the next admitted event
    states their number.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seconds: dict[tuple[str, str], _Second] = {}  # bounded by the service names in the key list
        self._omitted = 0

    def admits(self, event: TokenEvent) -> bool:
        """Whether to record the event; an operation that reached the vault is always recorded."""
        if event.outcome in _FEW:
            kind, limit = event.outcome, FEW_PER_SECOND
        elif event.outcome in _REFUSALS:
            kind, limit = "refused", REFUSALS_PER_SECOND
        else:
            return True
        second = self._seconds.setdefault((event.caller.service, kind), _Second())
        now = self._monotonic()
        if now - second.began >= 1:
            second.began, second.admitted = now, 0
        if second.admitted < limit:
            second.admitted += 1
            return True
        self.leave_out()
        return False

    def leave_out(self) -> None:
        """Count a refusal that is not recorded."""
        self._omitted += 1

    def take_omitted(self) -> int:
        """Return the number of refusals left out since the last call."""
        omitted, self._omitted = self._omitted, 0
        return omitted

    def give_back(self, omitted: int) -> None:
        """Return a taken number that no line states."""
        self._omitted += omitted
