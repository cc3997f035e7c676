"""A circuit breaker: after repeated failures, answer at once instead of waiting for the next one.

The libraries for this let every caller through as soon as the cool-down is over; under load that is the stampede that
a breaker is there to prevent. This one lets a single probe through.
"""

from __future__ import annotations

import math
import threading
import time
from typing import TYPE_CHECKING

import structlog

from app.errors import KeyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.security.counters import EncryptionCounters

_log = structlog.get_logger()
FAILURES = 5
COOL_DOWN_SECONDS = 5.0


class CircuitBreaker:
    """Closed until `failures` calls in a row have failed; then open, with one probe in each cool-down.

    A call reports back with the number that `admit` gave it. Each change of state has a new one: what a call tells
    that began before says nothing about now.
    """

    def __init__(
        self,
        *,
        counters: EncryptionCounters,
        failures: int = FAILURES,
        cool_down_seconds: float = COOL_DOWN_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._counters = counters
        self._limit = failures
        self._cool_down_seconds = cool_down_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._generation = 0
        self._failures = 0
        self._open_until: float | None = None

    def admit(self) -> int:
        """Let a call pass, or raise `KeyUnavailable` with the seconds until the next probe."""
        with self._lock:
            if self._open_until is None:
                return self._generation
            left = self._open_until - self._monotonic()
            if left > 0:
                message = "the key service has failed repeatedly and is given time to recover"
                raise KeyUnavailable(message, retry_after_seconds=math.ceil(left))
            # this caller is the probe; should it never report back, the next one follows after another cool-down
            self._open_until = self._monotonic() + self._cool_down_seconds
            self._generation += 1
            self._counters.breaker_state("half_open")
            return self._generation

    def succeeded(self, generation: int) -> None:
        """Report that the key service answered, whatever it said."""
        with self._lock:
            if generation != self._generation:
                return
            self._failures = 0
            if self._open_until is not None:
                self._open_until = None
                self._changed("closed")

    def failed(self, generation: int) -> None:
        """Report that the key service was unavailable."""
        with self._lock:
            if generation != self._generation:
                return
            self._failures += 1
            if self._failures >= self._limit:
                self._open_until = self._monotonic() + self._cool_down_seconds
                self._changed("open")

    def _changed(self, state: str) -> None:
        self._generation += 1
        self._counters.breaker_state(state)
        _log.warning("kms_breaker", state=state)
