"""A clock that a test advances."""

from __future__ import annotations


class Clock:
    """A monotonic clock in seconds; it starts at a value that no real clock is likely to have."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
