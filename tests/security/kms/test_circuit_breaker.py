"""The breaker of outages: calls that began before its state changed, and probes."""

from __future__ import annotations

from contextlib import suppress

import pytest

from app.errors import KeyUnavailable
from app.observability.in_memory_counters import InMemoryCounters
from app.security.kms.circuit_breaker import FAILURES, FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, CircuitBreaker
from tests.support.security.clock import Clock

_STEP_SECONDS = 0.01


def _seconds_of_an_outage(seconds: float, *, jitter: float, counters: InMemoryCounters) -> float:
    """Return when the first call succeeds if one call comes every 10 ms and the key service fails for `seconds`."""
    clock = Clock()
    breaker = CircuitBreaker(counters=counters, monotonic=clock, jitter=lambda: jitter)
    began = clock()
    while True:
        with suppress(KeyUnavailable):
            generation = breaker.admit()
            if clock() - began >= seconds:
                breaker.succeeded(generation)
                return clock() - began
            breaker.failed(generation)
        clock.advance(_STEP_SECONDS)


@pytest.mark.parametrize("jitter", [0.5, 0.75, 1.0])
def test_a_blip_of_the_key_service_ends_soon_for_callers(jitter: float) -> None:
    assert _seconds_of_an_outage(0.7, jitter=jitter, counters=InMemoryCounters()) < 1.5


@pytest.mark.parametrize("jitter", [0.5, 1.0])
def test_a_long_outage_is_probed_seldom_and_noticed_at_once(jitter: float) -> None:
    counters = InMemoryCounters()
    noticed = _seconds_of_an_outage(120.0, jitter=jitter, counters=counters) - 120.0
    assert noticed <= LONGEST_PAUSE_SECONDS + _STEP_SECONDS
    assert counters.counts["breaker_changes.half_open"] <= 120.0 / (LONGEST_PAUSE_SECONDS * jitter) + 6


def test_replicas_that_open_together_do_not_probe_together() -> None:
    clock = Clock()
    breakers = [_opened(clock, InMemoryCounters())[0] for _ in range(20)]
    clock.advance(0.75 * FIRST_PAUSE_SECONDS)

    def probes(breaker: CircuitBreaker) -> bool:
        try:
            breaker.admit()
        except KeyUnavailable:
            return False
        return True

    assert 0 < sum(map(probes, breakers)) < 20


def test_retry_after_is_the_time_until_the_next_probe_at_most() -> None:
    clock = Clock()
    breaker, _ = _opened(clock, InMemoryCounters())
    clock.advance(FIRST_PAUSE_SECONDS)
    breaker.admit()
    with pytest.raises(KeyUnavailable) as refused:
        breaker.admit()
    assert refused.value.retry_after_seconds == 1


def _opened(clock: Clock, counters: InMemoryCounters) -> tuple[CircuitBreaker, int]:
    breaker = CircuitBreaker(counters=counters, monotonic=clock)
    straggler = breaker.admit()
    for _ in range(FAILURES):
        breaker.failed(breaker.admit())
    assert counters.breaker == "open"
    return breaker, straggler


def test_a_late_failure_does_not_extend_the_pause() -> None:
    clock, counters = Clock(), InMemoryCounters()
    breaker, straggler = _opened(clock, counters)
    clock.advance(FIRST_PAUSE_SECONDS / 2 - 0.01)
    breaker.failed(straggler)
    clock.advance(FIRST_PAUSE_SECONDS / 2 + 0.01)
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
    clock.advance(LONGEST_PAUSE_SECONDS)
    lost = breaker.admit()
    assert (counters.breaker, counters.counts["breaker_changes.half_open"]) == ("half_open", 1)
    with pytest.raises(KeyUnavailable):
        breaker.admit()
    clock.advance(LONGEST_PAUSE_SECONDS)
    probe = breaker.admit()
    breaker.failed(lost)
    assert counters.breaker == "half_open", "the first probe's time was over"
    breaker.succeeded(probe)
    assert counters.breaker == "closed"
