"""Errors and deadlines of KMS: what each failure of KMS means to callers, and when the breaker opens."""

from __future__ import annotations

import base64
import json
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
from app.security.kms.circuit_breaker import LONGEST_PAUSE_SECONDS
from tests.support.security.envelopes import HERE, OTHER_USER, TOKEN, Envelope, envelope
from tests.support.stack.kms import REGION, Kms
from tests.support.stack.kms_faults import JSON_TYPE, Cut, KmsFault, Policy, Reply
from tests.support.waiting import eventually

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
# a sweep waits for new credentials, and counts a row as unreadable after any other denial
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
    """One operation of a process without a cached data key."""

    operation: str
    process: Envelope
    make: Callable[[], object]

    def fails(self) -> VaultError:
        with pytest.raises(EncryptionError) as caught:
            self.make()
        assert len(self.process.data_keys) == 0
        assert caught.value.__cause__ is None, "KMS's own error may quote the request"
        return caught.value


def calls(kms: Kms) -> dict[str, Call]:
    """Return each kind of call, of a process that has no data key cached."""
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
    """A process without the data key of `sealed`."""
    del sealed
    kms.forget_requests()
    return envelope(kms)


# Each error


@pytest.mark.parametrize(("code", "status"), UNAVAILABLE)
def test_a_transient_error_is_retryable_and_tried_twice(kms: Kms, call: Call, code: str, status: int) -> None:
    kms.faults.error(code, status=status)
    error = call.fails()
    assert type(error) is KeyUnavailable
    assert (error.code, error.retryable, error.retry_after_seconds) == ("key_unavailable", True, 1)
    assert kms.operations() == [call.operation] * 2
    assert call.process.counters.counts[f"kms_requests.{call.operation}.{code}"] == 2


@pytest.mark.parametrize(("code", "status"), DENIED)
def test_a_permanent_error_is_not_retryable_and_tried_once(kms: Kms, call: Call, code: str, status: int) -> None:
    kms.faults.error(code, status=status)
    error = call.fails()
    assert type(error) is (CredentialsDenied if code in ABOUT_CREDENTIALS else KeyDenied)
    assert (error.code, error.retryable) == ("key_denied", False)
    assert kms.operations() == [call.operation]
    assert "made up" not in error.detail, "KMS's own words stay out"


@pytest.mark.parametrize("call", ["open"], indirect=True)
def test_a_wrapped_key_that_does_not_authenticate_is_an_integrity_error(kms: Kms, call: Call) -> None:
    kms.faults.error("InvalidCiphertextException")
    error = call.fails()
    assert (type(error), error.code, error.retryable) == (IntegrityError, "integrity", False)
    assert kms.operations() == [DECRYPT]


def test_a_page_that_is_not_from_kms_is_an_outage(kms: Kms, call: Call) -> None:
    """It may be a proxy's page, and is no denial by KMS."""
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
def test_a_malformed_answer_is_an_outage(kms: Kms, call: Call, status: int) -> None:
    for body in _NONSENSE:
        kms.faults.answer(status, body=body, content_type=JSON_TYPE)
        assert type(call.fails()) is KeyUnavailable, body[:50]
        kms.faults.clear()
        call.process.clock.advance(60)  # past the breaker


@pytest.mark.parametrize("missing", ["KeyId", "CiphertextBlob"])
def test_an_incomplete_data_key_is_not_used(kms: Kms, process: Envelope, missing: str) -> None:
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
def test_the_second_attempt_makes_good_for_one_failure(kms: Kms, call: Call, fault: KmsFault) -> None:
    kms.faults.inject(fault, times=1)
    call.make()
    assert len(kms.requests) == 2


def test_throttling_every_third_request_is_not_noticed(kms: Kms, process: Envelope) -> None:
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


# Deadlines. Hung requests hang for a minute, so an answer within `HANG_BOUND_SECONDS` came from a deadline.

HANGS_SECONDS = 90
HANG_BOUND_SECONDS = 45


def _require_no_hang(call: Callable[[], object]) -> None:
    started = time.monotonic()
    call()
    assert time.monotonic() - started < HANG_BOUND_SECONDS


def test_a_kms_that_hangs_is_unavailable_at_the_deadline(kms: Kms) -> None:
    every = calls(kms).values()
    kms.faults.delay(HANGS_SECONDS)
    with ThreadPoolExecutor(len(every)) as threads:
        _require_no_hang(lambda: [error.code for error in threads.map(lambda call: call.fails(), every)])


def test_a_kms_that_drips_is_unavailable_at_the_deadline(kms: Kms) -> None:
    """Each read succeeds in time, but the whole answer does not."""
    process = envelope(kms, deadline_seconds=0.6)
    kms.faults.drip(0.5)
    _require_no_hang(lambda: _fail(process, 1))
    kms.faults.clear()


def test_the_deadline_spans_all_keys_and_attempts(kms: Kms, sealed: str) -> None:
    """Each key answers within the deadline, but all eight together do not."""
    keys = [*(kms.create_key() for _ in range(7)), kms.key_arn]
    process = envelope(kms, key_id=keys[0], previous_key_ids=keys[1:], deadline_seconds=1.2)
    kms.faults.delay(0.3)
    kms.forget_requests()
    with pytest.raises(KeyUnavailable, match="in time"):
        process.open(sealed)
    assert len(kms.requests) < len(keys)


def test_two_hundred_calls_on_a_kms_that_hangs_are_all_answered(kms: Kms, sealed: str) -> None:
    process = envelope(kms, deadline_seconds=1)
    kms.faults.delay(HANGS_SECONDS)

    def fail(number: int) -> None:
        with pytest.raises(KeyUnavailable):
            process.seal(TokenContext(f"user-{number}", "canvas"))

    with ThreadPoolExecutor(200) as threads:
        _require_no_hang(lambda: list(threads.map(fail, range(200))))
    kms.faults.clear()
    _require_recovery(process, sealed)


def test_closing_answers_every_waiting_call(kms: Kms) -> None:
    process = envelope(kms, boto_client=_own_client(kms), deadline_seconds=1)
    kms.faults.delay(HANGS_SECONDS)

    def fail(number: int) -> None:
        with pytest.raises(KeyUnavailable):
            process.seal(TokenContext(f"user-{number}", "canvas"))

    with ThreadPoolExecutor(70) as threads:
        waiting = [threads.submit(fail, number) for number in range(70)]
        eventually(lambda: kms.requests != [])
        process.client.close()
        _require_no_hang(lambda: [one.result() for one in waiting])
    with pytest.raises(KeyUnavailable, match="closed"):
        process.client.generate_data_key({})


def _own_client(kms: Kms) -> Any:
    return boto3.client(
        "kms",
        region_name=REGION,
        endpoint_url=kms.url,
        aws_access_key_id="application",
        aws_secret_access_key="none",
        config=Config(read_timeout=2, retries={"total_max_attempts": 1, "mode": "standard"}),
    )


def _require_recovery(process: Envelope, sealed: str) -> None:
    """Require that decryption and encryption succeed again, on a machine that may be too busy for a first try."""

    def recovered() -> bool:
        process.clock.advance(30)  # the breaker's cool-down
        newcomer = TokenContext(f"newcomer at {process.clock.now}", "canvas")  # whose key is not cached
        try:
            return process.open(sealed) == process.open(process.seal(newcomer), newcomer) == TOKEN
        except KeyUnavailable:
            return False

    eventually(recovered)
    assert process.counters.breaker == "closed"


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
        error = call.fails()
        assert (error.code, error.retryable, error.retry_after_seconds) == ("key_unavailable", True, 1)
    assert kms.requests == []
    for _ in range(6):  # each failed probe doubles the pause
        process.clock.advance(LONGEST_PAUSE_SECONDS)
        _fail(process, 1)
    assert every["seal"].fails().retry_after_seconds in {3, 4, 5}, "at least half of the longest pause"


def test_failures_count_only_in_a_row(kms: Kms, process: Envelope) -> None:
    for _ in range(3):
        kms.faults.error("ThrottlingException")
        _fail(process, 4)
        kms.faults.clear()
        process.seal(TokenContext(OTHER_USER, str(process.clock.now)))
        process.clock.advance(1)
    assert process.counters.breaker == "closed"


def test_every_kind_of_outage_opens_the_breaker(kms: Kms) -> None:
    for fault in (KmsFault(cut=Cut.BEFORE_THE_ANSWER), KmsFault(reply=Reply(502)), KmsFault(delay_seconds=30)):
        process = envelope(kms, deadline_seconds=0.15)
        kms.faults.inject(fault)
        _fail(process, 5)
        assert process.counters.breaker == "open"
        kms.faults.clear()


@pytest.mark.parametrize("code", [code for code, _ in DENIED] + ["InvalidCiphertextException"])
def test_denials_and_integrity_errors_do_not_open_the_breaker(
    kms: Kms, process: Envelope, sealed: str, code: str
) -> None:
    kms.faults.error(code)
    for _ in range(12):
        with pytest.raises((KeyDenied, IntegrityError)):
            process.open(sealed)
    assert process.counters.breaker == "closed"
    kms.faults.clear()
    process.clock.advance(1)  # the denial breaker's cool-down
    assert process.open(sealed) == TOKEN


def test_the_breaker_lets_exactly_one_probe_through(kms: Kms, process: Envelope) -> None:
    kms.faults.error("ThrottlingException")
    _fail(process, 5)
    kms.forget_requests()
    kms.faults.clear()
    kms.faults.delay(HANGS_SECONDS, operation=GENERATE)
    process.clock.advance(5)
    refused: list[int] = []

    def call(number: int) -> None:
        try:
            process.seal(TokenContext(f"user-{number}", "canvas"))
        except KeyUnavailable as error:
            refused.append(error.retry_after_seconds)

    with ThreadPoolExecutor(40) as threads:
        calling = [threads.submit(call, number) for number in range(40)]
        eventually(lambda: len(refused) >= 39)
        kms.faults.clear()
        for one in calling:
            one.result()
    assert len(refused) >= 39
    assert set(kms.operations()) == {GENERATE}
    assert len(kms.requests) <= 2, "one probe, of two attempts at most"


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


@pytest.mark.parametrize(
    ("max_age_seconds", "hangs"), [(300, False), (900, False), (300, True)], ids=["300 s", "900 s", "300 s, hanging"]
)
def test_users_with_a_cached_key_do_not_notice_an_outage(kms: Kms, max_age_seconds: float, *, hangs: bool) -> None:
    process = envelope(kms, max_age_seconds=max_age_seconds)
    ciphertext = process.seal()
    if hangs:
        process.client._deadline_seconds = 0.1  # noqa: SLF001  a hang takes the whole of it
        kms.faults.delay(HANGS_SECONDS)
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
    process.client._deadline_seconds = 30  # noqa: SLF001  a busy machine may take long
    kms.faults.clear()
    _require_recovery(process, ciphertext)


def test_requests_and_failures_are_counted(kms: Kms, process: Envelope, sealed: str) -> None:
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
