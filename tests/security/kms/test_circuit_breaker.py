"""The breaker of outages: calls that began before its state changed, and probes."""

from __future__ import annotations

import pytest

from app.errors import KeyUnavailable
from app.observability.in_memory_counters import InMemoryCounters
from app.security.kms.circuit_breaker import COOL_DOWN_SECONDS, FAILURES, CircuitBreaker
from tests.support.security.clock import Clock


def _opened(clock: Clock, counters: InMemoryCounters) -> tuple[CircuitBreaker, int]:
    breaker = CircuitBreaker(counters=counters, monotonic=clock)
    straggler = breaker.admit()
    for _ in range(FAILURES):
        breaker.failed(breaker.admit())
    assert counters.breaker == "open"
    return breaker, straggler


def test_a_late_failure_does_not_extend_the_cool_down() -> None:
    clock, counters = Clock(), InMemoryCounters()
    breaker, straggler = _opened(clock, counters)
    clock.advance(COOL_DOWN_SECONDS - 1)
    breaker.failed(straggler)
    clock.advance(1)
    breaker.succeeded(breaker.admit())
    assert counters.breaker == "closed"


def test_a_late_success_does_not_close_it() -> None:
    clock, counters = Clock(), InMemoryCounters()
    breaker, straggler = _opened(clock, counters)
    breaker.succeeded(straggler)
    assert counters.breaker == "open"
    with pytest.raises(KeyUnavailable):
        breaker.admit()


def test_a_probe_that_never_reports_is_followed_by_another() -> None:
    clock, counters = Clock(), InMemoryCounters()
    breaker, _ = _opened(clock, counters)
    clock.advance(COOL_DOWN_SECONDS)
    lost = breaker.admit()
    assert (counters.breaker, counters.counts["breaker_changes.half_open"]) == ("half_open", 1)
    with pytest.raises(KeyUnavailable):
        breaker.admit()
    clock.advance(COOL_DOWN_SECONDS)
    probe = breaker.admit()
    breaker.failed(lost)
    assert counters.breaker == "half_open", "the first probe's time was over"
    breaker.succeeded(probe)
    assert counters.breaker == "closed"
