"""Keeps attempts without a key from filling the disk."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS_PER_SECOND: Final = 10


class FloodGate:
    """Lets so many through in each second, and counts the others until one that is let through can say how many."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._second = float("-inf")
        self._admitted = 0
        self._omitted = 0

    def admits(self) -> bool:
        now = self._monotonic()
        if now - self._second >= 1:
            self._second, self._admitted = now, 0
        if self._admitted < EVENTS_PER_SECOND:
            self._admitted += 1
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
