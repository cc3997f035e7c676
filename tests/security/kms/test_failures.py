"""What callers get when KMS throttles, denies, lies or is gone, how soon, and how the breaker spares them."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config

from app.errors import CredentialsDenied, EncryptionError, IntegrityError, KeyDenied, KeyUnavailable, VaultError
from app.security.context import TokenContext
from tests.support.security.envelopes import HERE, OTHER_USER, TOKEN, USER, Envelope, envelope
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_faults import JSON_TYPE, Cut, KmsFault, Policy, Reply

# 2.5, and what a busy machine adds
RETRY_SECONDS = 3.2
GENERATE, DECRYPT = "GenerateDataKey", "Decrypt"

UNAVAILABLE = [
    ("ThrottlingException", 400),
    ("KMSInternalException", 500),
    ("DependencyTimeoutException", 503),
    ("KeyUnavailableException", 500),
    ("LimitExceededException", 400),
    ("ServiceUnavailableException", 503),
    ("RequestTimeoutException", 400),
    ("InternalFailure", 500),
    ("SomethingNewException", 500),
    ("SomethingNewException", 429),
]
# a sweep waits for new ones, where it would blame the row for any other denial
ABOUT_CREDENTIALS = {"ExpiredTokenException", "UnrecognizedClientException", "InvalidSignatureException"}
DENIED = [
    ("AccessDeniedException", 400),
    ("NotFoundException", 400),
    ("DisabledException", 400),
    ("KMSInvalidStateException", 400),
    ("InvalidGrantTokenException", 400),
    ("IncorrectKeyException", 400),
    ("InvalidKeyUsageException", 400),
    ("InvalidArnException", 400),
    ("ExpiredTokenException", 400),
    ("ExpiredTokenException", 403),
    ("UnrecognizedClientException", 400),
    ("InvalidSignatureException", 403),
    ("ValidationException", 400),
    ("SomethingNewException", 400),
]


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that a process asks of KMS, with no data key at hand."""

    operation: str
    process: Envelope
    make: Callable[[], object]

    def fails(self) -> VaultError:
        with pytest.raises(EncryptionError) as caught:
            self.make()
        assert len(self.process.data_keys) == 0
        assert caught.value.__cause__ is None, "KMS's own error may quote what was asked"
        return caught.value


def calls(kms: Kms) -> dict[str, Call]:
    """Return every kind of call, of one process that has started after everything was sealed."""
    sealed = envelope(kms).seal()
    process = envelope(kms)
    kms.forget_requests()
    return {
        "seal": Call(GENERATE, process, process.seal),
        "open": Call(DECRYPT, process, lambda: process.open(sealed)),
    }


@pytest.fixture(params=["seal", "open"])
def call(request: pytest.FixtureRequest, kms: Kms) -> Call:
    return calls(kms)[request.param]


@pytest.fixture
def sealed(kms: Kms) -> str:
    return envelope(kms).seal()


@pytest.fixture
def process(kms: Kms, sealed: str) -> Envelope:
    """One that has started after that was sealed, so has no key at hand."""
    del sealed
    kms.forget_requests()
    return envelope(kms)


# Each error


@pytest.mark.parametrize(("code", "status"), UNAVAILABLE)
def test_an_error_that_passes_is_retryable_and_tried_twice(kms: Kms, call: Call, code: str, status: int) -> None:
    kms.faults.error(code, status=status)
    error = call.fails()
    assert type(error) is KeyUnavailable
    assert (error.code, error.retryable, error.retry_after_seconds) == ("key_unavailable", True, 1)
    assert kms.operations() == [call.operation] * 2
    assert call.process.counters.counts[f"kms_requests.{call.operation}.{code}"] == 2


@pytest.mark.parametrize(("code", "status"), DENIED)
def test_an_error_that_needs_an_operator_is_neither_retryable_nor_retried(
    kms: Kms, call: Call, code: str, status: int
) -> None:
    kms.faults.error(code, status=status)
    error = call.fails()
    assert type(error) is (CredentialsDenied if code in ABOUT_CREDENTIALS else KeyDenied)
    assert (error.code, error.retryable) == ("key_denied", False)
    assert kms.operations() == [call.operation]
    assert "made up" not in error.detail, "KMS's own words stay out"


@pytest.mark.parametrize("call", ["open"], indirect=True)
def test_a_ciphertext_that_kms_does_not_authenticate_is_an_integrity_error(kms: Kms, call: Call) -> None:
    kms.faults.error("InvalidCiphertextException")
    error = call.fails()
    assert (type(error), error.code, error.retryable) == (IntegrityError, "integrity", False)
    assert kms.operations() == [DECRYPT]


def test_a_page_that_is_not_from_kms_means_unavailable(kms: Kms, call: Call) -> None:
    """Some proxy's page; KMS itself has denied nothing."""
    for status in (200, 302, 403, 404, 429, 503):
        kms.faults.answer(status)
        assert type(call.fails()) is KeyUnavailable, status
        kms.faults.clear()
        call.process.clock.advance(60)  # past the breaker
    assert kms.operations() == [call.operation] * 12


_BLOB = base64.b64encode(bytes(100)).decode()
_KEY = base64.b64encode(bytes(32)).decode()


_NONSENSE: list[bytes] = [
    *[b"", b"{", b"null", b"[]", b"1", b"{}", b'"x"', b"\xff\xfe", b"[" * 100_000],
    *(
        json.dumps(members).encode()
        for members in (
            {"KeyId": "arn", "Plaintext": "!!", "CiphertextBlob": "A"},
            {"KeyId": "arn", "Plaintext": 1, "CiphertextBlob": []},
            {"KeyId": 1, "Plaintext": None, "CiphertextBlob": None},
            {"KeyId": "arn", "Plaintext": "ü", "CiphertextBlob": "ü"},
            {"KeyId": "arn", "Plaintext": "", "CiphertextBlob": _BLOB},
            {"KeyId": "arn", "CiphertextBlob": _BLOB},
        )
    ),
]


@pytest.mark.parametrize(("call", "status"), [("seal", 200), ("open", 200), ("open", 400)], indirect=["call"])
def test_an_answer_that_makes_no_sense_is_neither_success_nor_denial(kms: Kms, call: Call, status: int) -> None:
    for body in _NONSENSE:
        kms.faults.answer(status, body=body, content_type=JSON_TYPE)
        assert type(call.fails()) is KeyUnavailable, body[:50]
        kms.faults.clear()
        call.process.clock.advance(60)  # past the breaker


@pytest.mark.parametrize("missing", ["KeyId", "CiphertextBlob"])
def test_a_data_key_that_is_not_whole_is_not_used(kms: Kms, process: Envelope, missing: str) -> None:
    whole = {"KeyId": kms.key_arn, "Plaintext": _KEY, "CiphertextBlob": _BLOB}
    for value in (None, ""):
        kms.faults.succeed_with({**whole, missing: value})
        with pytest.raises(KeyUnavailable):
            process.seal()
        kms.faults.clear()
    assert len(process.data_keys) == 0


@pytest.mark.parametrize("when", Cut)
def test_a_cut_connection_is_unavailable(kms: Kms, call: Call, when: Cut) -> None:
    kms.faults.cut(when)
    assert type(call.fails()) is KeyUnavailable
    assert kms.operations() == [call.operation] * 2


def test_a_kms_that_is_down_is_unavailable(kms: Kms, call: Call) -> None:
    kms.faults.down()
    assert type(call.fails()) is KeyUnavailable


@pytest.mark.parametrize(
    "fault",
    [
        KmsFault(reply=Reply.of_error("ThrottlingException")),
        KmsFault(reply=Reply(502)),
        KmsFault(cut=Cut.BEFORE_THE_ANSWER),
        KmsFault(cut=Cut.WITHIN_THE_ANSWER),
    ],
)
def test_one_failure_is_made_good_by_the_second_attempt(kms: Kms, call: Call, fault: KmsFault) -> None:
    kms.faults.inject(fault, times=1)
    call.make()
    assert len(kms.requests) == 2


def test_every_third_request_throttled_is_noticed_by_nobody(kms: Kms, process: Envelope) -> None:
    kms.faults.error("ThrottlingException", every=3)
    for number in range(20):
        context = TokenContext(f"user-{number}", "canvas")
        assert process.open(process.seal(context), context) == TOKEN
    assert process.counters.counts["kms_requests.GenerateDataKey.ThrottlingException"] == 9


def test_an_outage_of_one_operation_leaves_the_other(kms: Kms, process: Envelope, sealed: str) -> None:
    kms.faults.error("AccessDeniedException", operation=GENERATE)
    with pytest.raises(KeyDenied):
        process.seal()
    assert process.open(sealed) == TOKEN


def test_a_policy_without_the_context_denies(kms: Kms, process: Envelope, sealed: str) -> None:
    kms.faults.policy = Policy(frozenset({"kms:Decrypt"}), {"service": "pulseplan"})
    assert process.open(sealed) == TOKEN
    with pytest.raises(KeyDenied):
        process.seal()


def _client(kms: Kms, monkeypatch: pytest.MonkeyPatch, **credentials: str) -> Any:
    """Return a client that has these credentials and looks for no others on this machine."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    config = Config(retries={"total_max_attempts": 1, "mode": "standard"})
    return boto3.Session(region_name=REGION, **credentials).client("kms", endpoint_url=kms.url, config=config)


def test_missing_credentials_are_denied(kms: Kms, sealed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kms.forget_requests()
    process = envelope(kms, boto_client=_client(kms, monkeypatch))
    with pytest.raises(KeyDenied, match="credentials"):
        process.seal()
    with pytest.raises(KeyDenied, match="credentials"):
        process.open(sealed)
    assert kms.requests == []


def test_half_of_the_credentials_are_denied(kms: Kms, monkeypatch: pytest.MonkeyPatch) -> None:
    client = _client(kms, monkeypatch)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half")
    with pytest.raises(KeyDenied, match="credentials"):
        envelope(kms, boto_client=client).seal()


# How soon


def _seconds(call: Callable[[], object]) -> float:
    started = time.monotonic()
    call()
    return time.monotonic() - started


def test_a_kms_that_hangs_is_answered_in_time(kms: Kms) -> None:
    every = calls(kms).values()
    kms.faults.delay(30)
    with ThreadPoolExecutor(len(every)) as threads:
        assert max(threads.map(lambda call: _seconds(call.fails), every)) < RETRY_SECONDS


def test_a_kms_that_drips_is_answered_in_time(kms: Kms) -> None:
    """Each read succeeds in time; only the whole does not."""
    process = envelope(kms, deadline_seconds=0.6)
    kms.faults.drip(0.1)
    assert _seconds(lambda: _fail(process, 1)) < 2


def test_the_deadline_spans_all_keys_and_attempts(kms: Kms, sealed: str) -> None:
    """Three keys to try, each within the deadline, and together not."""
    keys = [kms.create_key(), kms.create_key(), kms.key_arn]
    process = envelope(kms, key_id=keys[0], previous_key_ids=keys[1:], deadline_seconds=0.85)
    kms.faults.delay(0.3)
    kms.forget_requests()
    with pytest.raises(KeyUnavailable, match="in time"):
        process.open(sealed)
    assert len(kms.requests) == 3
    assert process.counters.counts["kms_requests.Decrypt.IncorrectKeyException"] == 2


def test_two_hundred_calls_on_a_kms_that_hangs_are_all_answered_in_time(kms: Kms, process: Envelope) -> None:
    kms.faults.delay(30)
    waited: list[float] = []

    def call(number: int) -> None:
        started = time.monotonic()
        with pytest.raises(KeyUnavailable):
            process.seal(TokenContext(f"user-{number}", "canvas"))
        waited.append(time.monotonic() - started)

    with ThreadPoolExecutor(200) as threads:
        list(threads.map(call, range(200)))
    assert len(waited) == 200
    assert max(waited) < RETRY_SECONDS
    kms.faults.clear()
    process.clock.advance(30)
    assert process.open(process.seal()) == TOKEN, "no thread is left hanging"


def test_closing_answers_whoever_waits(kms: Kms) -> None:
    process = envelope(kms, boto_client=_own_client(kms), deadline_seconds=0.6)
    kms.faults.delay(30)
    errors: list[BaseException] = []

    def call(number: int) -> None:
        try:
            process.seal(TokenContext(f"user-{number}", "canvas"))
        except BaseException as error:  # noqa: BLE001  which one is the question
            errors.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(70)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    process.client.close()
    for thread in threads:
        thread.join()
    assert {type(error) for error in errors} == {KeyUnavailable}
    with pytest.raises(KeyUnavailable):
        process.seal()


def _own_client(kms: Kms) -> Any:
    return boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=kms.url,
        aws_access_key_id="application",
        aws_secret_access_key="none",
        config=Config(read_timeout=2, retries={"total_max_attempts": 1, "mode": "standard"}),
    )


# The breaker


def _fail(process: Envelope, times: int) -> None:
    for _ in range(times):
        with pytest.raises(KeyUnavailable):
            process.seal()


def test_the_breaker_opens_after_five_failures_and_answers_at_once(kms: Kms) -> None:
    every = calls(kms)
    process = every["seal"].process
    kms.faults.error("ThrottlingException")
    _fail(process, 4)
    assert process.counters.breaker == "closed"
    _fail(process, 1)
    assert process.counters.breaker == "open"
    kms.forget_requests()
    for call in every.values():
        started = time.monotonic()
        error = call.fails()
        assert time.monotonic() - started < 0.1
        assert (error.code, error.retryable, error.retry_after_seconds) == ("key_unavailable", True, 5)
    process.clock.advance(3.5)
    assert every["seal"].fails().retry_after_seconds == 2
    process.clock.advance(1.49)
    assert every["seal"].fails().retry_after_seconds == 1
    assert kms.requests == []


def test_failures_count_only_in_a_row(kms: Kms, process: Envelope) -> None:
    for _ in range(3):
        kms.faults.error("ThrottlingException")
        _fail(process, 4)
        kms.faults.clear()
        process.seal(TokenContext(OTHER_USER, str(process.clock.now)))
        process.clock.advance(1)
    assert process.counters.breaker == "closed"


def test_every_kind_of_unavailability_opens_the_breaker(kms: Kms) -> None:
    for fault in (KmsFault(cut=Cut.BEFORE_THE_ANSWER), KmsFault(reply=Reply(502)), KmsFault(delay_seconds=30)):
        process = envelope(kms, deadline_seconds=0.15)
        kms.faults.inject(fault)
        _fail(process, 5)
        assert process.counters.breaker == "open"
        kms.faults.clear()


@pytest.mark.parametrize("code", [code for code, _ in DENIED] + ["InvalidCiphertextException"])
def test_an_answer_that_is_no_outage_does_not_open_the_breaker(
    kms: Kms, process: Envelope, sealed: str, code: str
) -> None:
    kms.faults.error(code)
    for _ in range(12):
        with pytest.raises((KeyDenied, IntegrityError)):
            process.open(sealed)
    assert process.counters.breaker == "closed"
    kms.faults.clear()
    process.clock.advance(1)  # for as long a denial is remembered
    assert process.open(sealed) == TOKEN


def test_the_breaker_lets_exactly_one_probe_through(kms: Kms, process: Envelope) -> None:
    kms.faults.error("ThrottlingException")
    _fail(process, 5)
    kms.forget_requests()
    kms.faults.clear()
    kms.faults.delay(0.3, operation=GENERATE)
    process.clock.advance(5)
    outcomes: list[object] = []
    together = threading.Barrier(40)

    def call(number: int) -> None:
        together.wait()
        try:
            outcomes.append(process.seal(TokenContext(f"user-{number}", "canvas")))
        except KeyUnavailable as error:
            outcomes.append(error.retry_after_seconds)

    with ThreadPoolExecutor(40) as threads:
        list(threads.map(call, range(40)))
    assert kms.operations() == [GENERATE]
    assert outcomes.count(5) == 39
    assert process.counters.breaker == "closed"
    assert process.open(process.seal()) == TOKEN


def test_a_probe_that_fails_keeps_the_breaker_open(kms: Kms, process: Envelope) -> None:
    kms.faults.error("ThrottlingException")
    _fail(process, 5)
    for _ in range(3):
        process.clock.advance(5)
        kms.forget_requests()
        _fail(process, 3)
        assert kms.operations() == [GENERATE] * 2, "one probe, of two attempts"
        assert process.counters.breaker == "open"
    kms.faults.clear()
    process.clock.advance(5)
    process.seal()
    assert process.counters.breaker == "closed"


def test_a_probe_that_is_denied_closes_the_breaker(kms: Kms, process: Envelope) -> None:
    kms.faults.error("ThrottlingException")
    _fail(process, 5)
    kms.faults.clear()
    kms.faults.error("AccessDeniedException")
    process.clock.advance(5)
    for _ in range(2):
        with pytest.raises(KeyDenied):
            process.seal()
    assert process.counters.breaker == "closed"


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("max_age_seconds", [300, 900])
def test_whose_key_is_cached_notices_nothing_of_a_ten_minute_outage(
    kms: Kms, max_age_seconds: float, *, hangs: bool
) -> None:
    process = envelope(kms, max_age_seconds=max_age_seconds, deadline_seconds=0.3 if hangs else 2.5)
    ciphertext = process.seal()
    if hangs:
        kms.faults.delay(30)
    else:
        kms.faults.down()
    for minute in range(10):
        if minute * 60 >= max_age_seconds:
            with pytest.raises(KeyUnavailable):
                process.open(ciphertext)
            with pytest.raises(KeyUnavailable):
                process.seal()
        else:
            assert process.open(ciphertext) == TOKEN
            assert process.strategy.open(ciphertext, HERE, wait=False) == TOKEN
            assert process.open(process.seal()) == TOKEN
        # others keep asking in vain
        for number in range(7):
            with pytest.raises(KeyUnavailable):
                process.seal(TokenContext(f"stranger-{minute}-{number}", "canvas"))
        assert process.counters.breaker == "open"
        process.clock.advance(60)
    kms.faults.clear()
    process.clock.advance(30)
    assert process.open(ciphertext) == TOKEN
    stranger = TokenContext(USER, "google")
    assert process.open(process.seal(stranger), stranger) == TOKEN
    assert process.counters.breaker == "closed"


def test_counters_tell_what_happened(kms: Kms, process: Envelope, sealed: str) -> None:
    kms.faults.error("ThrottlingException", times=1)
    process.seal()
    kms.faults.error("AccessDeniedException", times=1)
    with pytest.raises(KeyDenied):
        process.open(sealed)
    counts = process.counters.counts
    assert counts["kms_requests.GenerateDataKey.ThrottlingException"] == 1
    assert counts["kms_requests.GenerateDataKey.success"] == 1
    assert counts["kms_requests.Decrypt.AccessDeniedException"] == 1
    assert counts["decryption_failures.key_denied"] == 1
    assert process.counters.seconds["kms_request_seconds.Decrypt"] > 0
