"""Metrics of abuse: how many users each service reveals, and what it is denied.

A stolen service key shows itself by who it asks for, not by how often.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.errors import Forbidden, Unauthenticated
from app.observability.metrics.labels import NONE, OTHER
from app.tokens.events import SUCCESS, Operation, TokenEvent

WINDOW_SECONDS: Final = 3600.0
_MOST_SERVICES: Final = 64  # the others share the label `other`
_DENIALS: Final = frozenset({Forbidden.code, Unauthenticated.code})
_REGISTERS: Final = 1024
_INDEX_BITS: Final = 10
_RANK_BITS: Final = 53
_ALPHA: Final = 0.7213 / (1 + 1.079 / _REGISTERS)


class DistinctCount:
    """HyperLogLog: estimates the number of distinct texts in 1 KiB, with a standard error of 3 %.

    Flajolet, Fusy, Gandouet and Meunier, 2007, with linear counting for small numbers. It uses Python's own keyed hash,
    so callers cannot choose texts that collide.
    """

    __slots__ = ("_registers",)

    def __init__(self) -> None:
        self._registers = bytearray(_REGISTERS)

    def add(self, text: str) -> None:
        bits = hash(text)
        rank = _RANK_BITS + 1 - (bits >> _INDEX_BITS & (1 << _RANK_BITS) - 1).bit_length()
        index = bits & _REGISTERS - 1
        self._registers[index] = max(self._registers[index], rank)

    def estimate(self) -> int:
        estimate = _ALPHA * _REGISTERS**2 / sum(2.0**-rank for rank in self._registers)
        empty = self._registers.count(0)
        if empty and estimate <= 2.5 * _REGISTERS:
            estimate = _REGISTERS * math.log(_REGISTERS / empty)
        return round(estimate)


class _HourlyUsers:
    """Distinct users of one service in the current hour of the process, and in the hour before."""

    __slots__ = ("_before", "_current", "_hour")

    def __init__(self, hour: int) -> None:
        self._hour, self._current, self._before = hour, DistinctCount(), DistinctCount()

    def add(self, user_id: str, hour: int) -> None:
        self._turn(hour)
        self._current.add(user_id)

    def estimate(self, hour: int) -> int:
        self._turn(hour)
        return max(self._current.estimate(), self._before.estimate())

    def _turn(self, hour: int) -> None:
        if hour != self._hour:
            self._before = self._current if hour == self._hour + 1 else DistinctCount()
            self._hour, self._current = hour, DistinctCount()


class CallerMetrics:
    """Counts by calling service; implements `TokenObserver`. Called on the event loop."""

    def __init__(self, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: set[str] = set()
        self._users: dict[str, _HourlyUsers] = {}
        self._users_gauge = Gauge(
            "token_vault_users_revealed",
            "Distinct users with a revealed token in this hour or in the last, whichever is more; within some percent.",
            ["service"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._denials = Counter(
            "token_vault_denials",
            "Operations on tokens denied to a service, each item of a batch too; `none` has no valid service key.",
            ["service", "code"],
            registry=registry,
        )
        self._denials.labels(NONE, Unauthenticated.code)

    def record(self, event: TokenEvent) -> None:
        """Count the user of a reveal that succeeded."""
        if event.operation is not Operation.REVEAL or event.outcome != SUCCESS or event.user_id is None:
            return
        hour, caller = self._hour(), event.caller.service
        users = self._users.get(caller)
        if users is None:
            users = self._users.setdefault(self._label(caller), _HourlyUsers(hour))
        users.add(event.user_id, hour)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            self.record(event)

    def refused(self, event: TokenEvent) -> None:
        """Count an operation that was refused before it began, if it was denied."""
        if event.outcome in _DENIALS:
            self._denials.labels(
                self._label(event.caller.service) if event.caller.service else NONE, event.outcome
            ).inc()

    def publish(self, services: Iterable[str] = ()) -> None:
        """Set the gauge; before a scrape, because an estimate reads 1 024 registers.

        `services` have a valid key. Each gets its counter now: an alert sees an increase, not a new series.
        """
        for service in services:
            self._label(service)
        hour = self._hour()
        for service, users in self._users.items():
            self._users_gauge.labels(service).set(users.estimate(hour))

    def _hour(self) -> int:
        return int(self._clock() // WINDOW_SECONDS)

    def _label(self, service: str) -> str:
        if service in self._known:
            return service
        if len(self._known) == _MOST_SERVICES:
            return OTHER
        self._known.add(service)
        self._denials.labels(service, Forbidden.code)
        return service
