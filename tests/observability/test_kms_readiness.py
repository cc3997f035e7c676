"""The KMS check of readiness: its rate, and the failures that count."""

from __future__ import annotations

import asyncio

import pytest

from app.errors import KeyDenied, KeyUnavailable, VaultError
from app.observability.readiness import (
    PROBE_SECONDS,
    PROBE_SECONDS_WHILE_DOWN,
    TIMEOUT,
    KmsCheck,
    Readiness,
    _BackgroundCheck,
    encryption_check,
)
from tests.support.security.clock import Clock
from tests.support.security.envelopes import envelope
from tests.support.stack.kms import Kms


async def test_kms_is_probed_once_in_ten_seconds(kms: Kms) -> None:
    clock = Clock()
    check = KmsCheck(kms=envelope(kms).client, monotonic=clock)
    for _ in range(20):
        await check()
        clock.advance(PROBE_SECONDS / 20)
    assert kms.operations() == ["GenerateDataKey"]
    await check()
    assert kms.operations() == ["GenerateDataKey"] * 2
    assert kms.requests[0].context["service"] == "pulseplan"


async def test_a_single_failure_after_a_success_does_not_count(kms: Kms) -> None:
    clock = Clock()
    process = envelope(kms)
    check = KmsCheck(kms=process.client, monotonic=clock)
    kms.faults.error("KMSInternalException")
    with pytest.raises(KeyUnavailable):
        await check()
    kms.faults.clear()
    clock.advance(PROBE_SECONDS_WHILE_DOWN)
    await check()
    kms.faults.error("KMSInternalException")
    clock.advance(PROBE_SECONDS)
    await check()
    clock.advance(PROBE_SECONDS_WHILE_DOWN)
    with pytest.raises(KeyUnavailable):
        await check()


async def test_a_denial_counts_at_once(kms: Kms) -> None:
    clock = Clock()
    check = KmsCheck(kms=envelope(kms).client, monotonic=clock)
    await check()
    kms.faults.error("AccessDeniedException")
    clock.advance(PROBE_SECONDS)
    with pytest.raises(KeyDenied):
        await check()


async def test_the_self_test_requests_kms_no_more_often_than_the_probe(kms: Kms) -> None:
    check = encryption_check(envelope(kms).service, keys_are_remote=True)
    kms.faults.error("AccessDeniedException")
    for _ in range(50):
        await check()
    assert kms.operations() == ["GenerateDataKey"]


async def test_a_check_that_hangs_delays_only_its_first_caller() -> None:
    """An orchestrator allows a second, so later callers get the last outcome while the check runs."""
    hangs, is_over, calls = asyncio.Event(), asyncio.Event(), 0

    async def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 1:
            hangs.set()
            await is_over.wait()
            raise KeyUnavailable("the second call failed")

    background = _BackgroundCheck(check)
    async with asyncio.timeout(30):
        await background()
        await background()
        await hangs.wait()
        await background()
        is_over.set()
        await asyncio.sleep(0.01)
        with pytest.raises(KeyUnavailable):
            await background()


async def test_a_denial_that_is_tolerated_shows_that_kms_was_reached() -> None:
    """A local primary whose role may only decrypt stays ready when an outage of KMS follows."""
    problems: list[VaultError] = [KeyUnavailable("no egress"), KeyDenied("decrypts only"), KeyUnavailable("an outage")]

    async def check() -> None:
        raise problems.pop(0)

    readiness = Readiness(
        checks={"kms": check},
        tolerated={"kms": frozenset({KeyDenied.code})},
        tolerated_later={"kms": frozenset({KeyUnavailable.code, TIMEOUT})},
        cache_seconds=0.0,
    )
    states = [(await readiness.states())["kms"] for _ in range(3)]
    assert states == ["down", "degraded", "degraded"]
