"""The breaker of denials: few requests for what KMS denies, and recovery within a second."""

from __future__ import annotations

import pytest

from app.errors import KeyDenied
from app.security.kms.circuit_breaker import DENIAL_SECONDS, DENIALS, DenialBreaker
from tests.support.security.clock import Clock
from tests.support.security.envelopes import TOKEN, envelope
from tests.support.stack.kms import Kms


def test_a_hundred_denied_reads_are_a_few_requests(kms: Kms) -> None:
    process = envelope(kms, previous_key_ids=[kms.create_key() for _ in range(3)])
    ciphertext = envelope(kms).seal()
    kms.forget_requests()
    kms.faults.error("AccessDeniedException")
    for _ in range(100):
        with pytest.raises(KeyDenied, match="KMS denies this"):
            process.open(ciphertext)
    assert len(kms.requests) <= 4 * (DENIALS + 3), "three for each key, and one for each second that this took"


def test_a_denied_write_does_not_stop_reading(kms: Kms) -> None:
    process, ciphertext = envelope(kms), envelope(kms).seal()
    kms.faults.error("AccessDeniedException", operation="GenerateDataKey")
    for _ in range(10):
        with pytest.raises(KeyDenied):
            process.seal()
    assert process.open(ciphertext) == TOKEN


def test_one_request_a_second_passes_and_a_success_closes_it() -> None:
    clock = Clock()
    denials = DenialBreaker(monotonic=clock)
    for _ in range(DENIALS):
        denials.admit("x")
        denials.answered("x", KeyDenied("no"))
    denials.admit("y")
    for _ in range(5):
        with pytest.raises(KeyDenied, match="no"):
            denials.admit("x")
    clock.advance(DENIAL_SECONDS)
    denials.admit("x")
    with pytest.raises(KeyDenied):
        denials.admit("x")
    denials.answered("x", None)
    denials.admit("x")
    denials.admit("x")


def test_two_denials_in_a_row_do_not_open_the_breaker() -> None:
    denials = DenialBreaker()
    for _ in range(10):
        for _ in range(DENIALS - 1):
            denials.admit("x")
            denials.answered("x", KeyDenied("no"))
        denials.admit("x")
        denials.answered("x", None)
