"""Keeps refusals from filling the disk: whoever repeats a wrong call is recorded, but not each time."""

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
    """How many were let through since it began."""

    began: float = float("-inf")
    admitted: int = 0


class RefusalLimiter:
    """Lets so many refusals of a service through in each second: 10 for no key and too many calls, 100 of all others.

    Those without a key share one place. The others are counted until an event that is let through can say how many.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seconds: dict[tuple[str, str], _Second] = {}  # as many as there are service names in the key list
        self._omitted = 0

    def admits(self, event: TokenEvent) -> bool:
        """Whether to keep the event; one that is no refusal at the door always is."""
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
        self._omitted += 1
        return False

    def take_omitted(self) -> int:
        """Return how many were left out since this was last asked."""
        omitted, self._omitted = self._omitted, 0
        return omitted

    def give_back(self, omitted: int) -> None:
        """Take back a number that was taken and could not be said."""
        self._omitted += omitted
