"""Rates and concurrency of services, with an injected clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.callers.rate_limits import AdmittedRequest, RequestLimits
from app.errors import Overloaded, RateLimited
from tests.support.security.clock import Clock


def _ask(limits: RequestLimits, tokens: int = 1, service: str = "jobs") -> None:
    admitted = limits.admit()
    try:
        admitted.enter_service(service)
        if tokens > 1:
            admitted.charge(tokens)
    finally:
        admitted.close()


def _passed(limits: RequestLimits, attempts: int) -> int:
    passed = 0
    for _ in range(attempts):
        try:
            _ask(limits)
        except RateLimited:
            continue
        passed += 1
    return passed


def test_a_burst_passes_and_then_exactly_the_rate() -> None:
    clock = Clock()
    limits = RequestLimits(tokens_per_second=100, monotonic=clock)
    assert _passed(limits, 1000) == 200, "two seconds' worth"
    for _ in range(10):
        clock.advance(1)
        assert _passed(limits, 1000) == 100


def test_a_refused_request_costs_nothing() -> None:
    clock = Clock()
    limits = RequestLimits(tokens_per_second=100, monotonic=clock)
    _passed(limits, 10_000)
    clock.advance(2)
    assert _passed(limits, 1000) == 200


@given(
    rate=st.floats(min_value=0.05, max_value=10_000),
    asked=st.lists(st.tuples(st.integers(1, 100), st.floats(0, 3)), min_size=1, max_size=60),
)
def test_a_caller_that_waits_retry_after_is_served(rate: float, asked: list[tuple[int, float]]) -> None:
    clock = Clock()
    limits = RequestLimits(tokens_per_second=rate, monotonic=clock)
    for tokens, pause in asked:
        clock.advance(pause)
        # a batch may be refused before its size is known; Retry-After is then the wait for one token
        for refusals in range(3):
            try:
                _ask(limits, tokens)
            except RateLimited as refused:
                assert refusals < (1 if tokens == 1 else 2)
                clock.advance(refused.retry_after_seconds)
            else:
                break


def test_the_wait_is_not_longer_than_needed_by_a_second() -> None:
    clock = Clock()
    limits = RequestLimits(tokens_per_second=100, monotonic=clock)
    _ask(limits, 100)
    _ask(limits, 100)
    with pytest.raises(RateLimited) as refused:
        _ask(limits)
    assert refused.value.retry_after_seconds == 1


@pytest.mark.parametrize("rate", [0.5, 1, 10, 49, 1000])
def test_a_whole_batch_passes_at_any_rate_after_a_pause(rate: float) -> None:
    limits = RequestLimits(tokens_per_second=rate, monotonic=Clock())
    _ask(limits, 100)
    repeated = RequestLimits(tokens_per_second=rate, monotonic=Clock())
    assert _passed(repeated, 10_000) == max(100, 2 * rate)


def test_an_excessive_service_takes_nothing_from_another() -> None:
    limits = RequestLimits(tokens_per_second=100, monotonic=Clock())
    _passed(limits, 1000)
    _ask(limits, service="another")


def test_the_concurrency_of_a_service_is_limited() -> None:
    limits = RequestLimits(concurrent_per_service=3)
    held = [_entered(limits) for _ in range(3)]
    with pytest.raises(RateLimited) as refused:
        _ask(limits)
    assert refused.value.retry_after_seconds == 1
    _ask(limits, service="another")
    held.pop().close()
    _ask(limits)
    assert limits.in_flight == limits.in_flight_of("jobs") == 2, "held requests count, refused ones do not"


def test_the_concurrency_of_the_process_is_limited() -> None:
    limits = RequestLimits(concurrent=2)
    held = [limits.admit(), limits.admit()]
    with pytest.raises(Overloaded):
        limits.admit()
    held.pop().close()
    limits.admit().close()
    assert limits.in_flight == 1


def test_zero_limits_nothing() -> None:
    limits = RequestLimits()
    held = [_entered(limits) for _ in range(10_000)]
    assert limits.in_flight == len(held)


def _entered(limits: RequestLimits, service: str = "jobs") -> AdmittedRequest:
    admitted = limits.admit()
    admitted.enter_service(service)
    return admitted


def test_a_batch_takes_the_places_of_its_tokens() -> None:
    limits = RequestLimits(concurrent=250, concurrent_per_service=150)
    batch = _entered(limits)
    batch.charge(100)
    assert (limits.in_flight, limits.in_flight_of("jobs")) == (100, 100)
    with pytest.raises(RateLimited):
        _ask(limits, 100)
    other = _entered(limits, "another")
    other.charge(100)
    third = _entered(limits, "third")
    with pytest.raises(Overloaded):
        third.charge(100)
    third.close()
    assert limits.in_flight == 200, "a refused batch takes no place"
    batch.close()
    _ask(limits, 100)
    other.close()
    assert (limits.in_flight, limits.in_flight_of("jobs"), limits.in_flight_of("another")) == (0, 0, 0)


def test_a_batch_larger_than_a_limit_passes_alone() -> None:
    limits = RequestLimits(concurrent=50, concurrent_per_service=10)
    single = _entered(limits)
    with pytest.raises(RateLimited):
        _ask(limits, 100)
    single.close()
    _ask(limits, 100)
    assert limits.in_flight == 0


def test_a_batch_refused_for_its_places_does_not_use_the_rate() -> None:
    limits = RequestLimits(tokens_per_second=100, concurrent_per_service=100, monotonic=Clock())
    held = _entered(limits)
    for _ in range(50):
        with pytest.raises(RateLimited, match="in progress"):
            _ask(limits, 100)
    held.close()
    _ask(limits, 100)
    _ask(limits, 99)
