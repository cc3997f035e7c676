"""Requests that KMS is spared: the circuit breaker and the memory of denials."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

import structlog

from app.errors import KeyDenied, KeyUnavailable
from app.security.counters import EncryptionCounters

# --- A circuit breaker: after repeated failures, answer at once instead of waiting for the next one.
# The libraries for this let every caller through as soon as the cool-down is over; under load that is the stampede that
# a breaker is there to prevent. This one lets a single probe through.

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
                raise KeyUnavailable(
                    "the key service has failed repeatedly and is given time to recover",
                    retry_after_seconds=math.ceil(left),
                )
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


# --- Denials by KMS, remembered for a moment: asking again at once gets the same answer, at the price of a success.

DENIALS: Final = 3
SECONDS: Final = 1.0


@dataclass(slots=True)
class _Denied:
    """`times` in a row, the last of them with `error`; not asked again before `ask_again_at`."""

    error: KeyDenied
    times: int = 0
    ask_again_at: float = 0.0


class DenialMemory:
    """After three denials of one thing in a row the last is repeated for a second; then one call may ask again.

    Three, because a single caller's denial should not be everybody's. Safe for concurrent use.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._denied: dict[Hashable, _Denied] = {}

    def admit(self, what: Hashable) -> None:
        """Let a call pass, or raise what the last one was denied with."""
        with self._lock:
            denied = self._denied.get(what)
            if denied is None or denied.times < DENIALS:
                return
            if self._monotonic() >= denied.ask_again_at:
                denied.ask_again_at = self._monotonic() + SECONDS
                return
        # a copy: as one object it would gather the traceback of everyone who raises it
        raise denied.error.copy()

    def answered(self, what: Hashable, error: KeyDenied | None) -> None:
        """Note how a call ended that was answered; `None` where it was not denied."""
        with self._lock:
            if error is None:
                self._denied.pop(what, None)
                return
            denied = self._denied.setdefault(what, _Denied(error))
            denied.error, denied.times = error.copy(), denied.times + 1
            denied.ask_again_at = self._monotonic() + SECONDS
