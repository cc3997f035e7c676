"""Circuit breakers in front of KMS: one for outages, and one for denials.

Both answer at once after several failures in a row, and let a single request through after each pause. The libraries
for this let every caller through when the pause is over, which under load is the stampede that a breaker prevents.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Final

import structlog

from app.errors import KeyDenied, KeyUnavailable
from app.security.counters import EncryptionCounters

FAILURES: Final = 5
FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
DENIALS: Final = 3  # a single caller's denial is not yet everybody's
DENIAL_SECONDS: Final = 1.0
_log = structlog.get_logger()


class CircuitBreaker:
    """Closed until `FAILURES` calls in a row have failed; then open, with one probe after each pause.

    The first pause is short, because most failures are; each failed probe doubles it, up to `LONGEST_PAUSE_SECONDS`.
    `jitter` shortens each pause to between half and all of it, so that replicas do not probe together.

    A call reports its outcome with the generation that `admit` returned. Each change of state starts a new generation,
    so the outcome of a call that began before is ignored.
    """

    def __init__(
        self,
        *,
        counters: EncryptionCounters,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0),  # noqa: S311  spreads replicas out
    ) -> None:
        self._counters = counters
        self._monotonic = monotonic
        self._jitter = jitter
        self._lock = threading.Lock()
        self._generation = 0
        self._failures = 0
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._open_until: float | None = None

    def admit(self) -> int:
        """Return the generation, or raise `KeyUnavailable` with the seconds until the next probe."""
        with self._lock:
            if self._open_until is None:
                return self._generation
            left = self._open_until - self._monotonic()
            if left > 0:
                raise KeyUnavailable(
                    "the key service has failed repeatedly and is given time to recover",
                    retry_after_seconds=math.ceil(min(left, self._pause_seconds)),
                )
            # this call is the probe; if it never reports, the next probe follows after the longest pause
            self._open_until = self._monotonic() + LONGEST_PAUSE_SECONDS
            self._generation += 1
            self._counters.breaker_state("half_open")
            return self._generation

    def succeeded(self, generation: int) -> None:
        """Report any answer of the key service, also a denial."""
        with self._lock:
            if generation != self._generation:
                return
            self._failures = 0
            if self._open_until is not None:
                self._open_until = None
                self._pause_seconds = FIRST_PAUSE_SECONDS
                self._change("closed")

    def failed(self, generation: int) -> None:
        """Report that the key service was unavailable."""
        with self._lock:
            if generation != self._generation:
                return
            self._failures += 1
            if self._failures >= FAILURES:
                if self._open_until is not None:  # a probe failed
                    self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
                self._open_until = self._monotonic() + self._pause_seconds * self._jitter()
                self._change("open")

    def _change(self, state: str) -> None:
        self._generation += 1
        self._counters.breaker_state(state)
        _log.warning("kms_breaker", state=state)


@dataclass(slots=True)
class _Denials:
    last: KeyDenied
    in_a_row: int = 0
    next_request_at: float = 0.0


class DenialBreaker:
    """Repeats a denial for a second once the same request was denied three times in a row.

    A repeated request would get the same answer at the price of a successful one. `request` identifies equal requests,
    for example by operation and key. Safe for concurrent use.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._denials: dict[Hashable, _Denials] = {}

    def admit(self, request: Hashable) -> None:
        """Return if the request may be sent, or raise the last denial."""
        with self._lock:
            denials = self._denials.get(request)
            if denials is None or denials.in_a_row < DENIALS:
                return
            if self._monotonic() >= denials.next_request_at:
                denials.next_request_at = self._monotonic() + DENIAL_SECONDS
                return
        raise denials.last.copy()

    def answered(self, request: Hashable, denial: KeyDenied | None) -> None:
        """Note an answer; `None` for any answer but a denial."""
        with self._lock:
            if denial is None:
                self._denials.pop(request, None)
                return
            denials = self._denials.setdefault(request, _Denials(denial))
            denials.last = denial.copy()
            denials.in_a_row += 1
            denials.next_request_at = self._monotonic() + DENIAL_SECONDS
