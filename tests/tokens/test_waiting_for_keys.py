"""`TokenCipher` with many callers that wait for KMS: deadlines, shared requests and errors."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable
from typing import Any

import pytest
from pydantic import SecretStr

from app.errors import IntegrityError, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.tokens.cipher import KEY_SECONDS, WAITING_CALLS, Binding, TokenCipher
from app.tokens.models import TokenId
from tests.support.security.envelopes import (
    OTHER_USER,
    TOKEN,
    USER,
    Envelope,
    changed,
    decode,
    encode,
    envelope,
    members_of,
)
from tests.support.security.keys import local_strategy
from tests.support.stack.kms import Kms
from tests.support.stores.stores import token
from tests.support.waiting import eventually, eventually_async

# hung requests hang for longer than an answer may take, so every answer within the bound came from a deadline
HANGS_SECONDS = 90
HANG_BOUND_SECONDS = 45
PATIENT_SECONDS = 60.0
HERE = TokenId(USER, "canvas")


def _cipher(process: Envelope, *, fallback: bool = False, key_seconds: float = KEY_SECONDS) -> TokenCipher:
    local = local_strategy() if fallback else None
    return TokenCipher(
        encryption=EncryptionService(
            primary=process.strategy,
            readers=[] if local is None else [local],
            fallback=local,
            counters=process.counters,
        ),
        key_seconds=key_seconds,
    )


def _patient(kms: Kms) -> TokenCipher:
    """Return a cipher without keys, whose requests may take as long as a busy machine needs."""
    return _cipher(envelope(kms, deadline_seconds=PATIENT_SECONDS), key_seconds=PATIENT_SECONDS)


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    started = time.monotonic()
    try:
        result: Any = await call
    except KeyUnavailable as error:
        result = error
    return time.monotonic() - started, result


async def test_a_crowd_of_reads_in_an_outage_gets_key_unavailable(kms: Kms) -> None:
    row = token(HERE, encryption_scheme=None, access_ciphertext=envelope(kms).seal())
    cipher = _cipher(envelope(kms))
    kms.faults.delay(HANGS_SECONDS)
    answers = await asyncio.gather(*(_timed(cipher.open_access(row)) for _ in range(300)))
    assert all(isinstance(answer, KeyUnavailable) for _, answer in answers), (
        "an outage of the key service, not of the store"
    )
    assert max(seconds for seconds, _ in answers) < HANG_BOUND_SECONDS


async def test_a_crowd_that_waits_for_one_key_delays_no_other_user(kms: Kms) -> None:
    theirs = token(
        TokenId(OTHER_USER, "canvas"),
        encryption_scheme=None,
        access_ciphertext=envelope(kms).seal(_context(OTHER_USER)),
    )
    row = token(HERE, encryption_scheme=None, access_ciphertext=envelope(kms).seal())
    cipher = _patient(kms)
    kms.forget_requests()
    kms.faults.delay(1.5, times=1)  # the crowd's only request; boto3 waits 2 s for it
    crowd = [asyncio.create_task(cipher.open_access(row)) for _ in range(300)]
    await eventually_async(lambda: kms.requests != [])
    assert (await cipher.open_access(theirs)).get_secret_value()
    assert {secret.get_secret_value() for secret in await asyncio.gather(*crowd)} == {TOKEN}
    assert [request.context["user_id"] for request in kms.requests[:2]] == [USER, OTHER_USER]


async def test_a_caller_that_leaves_does_not_end_the_shared_request(kms: Kms) -> None:
    row = token(HERE, encryption_scheme=None, access_ciphertext=envelope(kms).seal())
    cipher = _patient(kms)
    kms.forget_requests()
    kms.faults.delay(1, times=1)
    first, second = (asyncio.create_task(cipher.open_access(row)) for _ in range(2))
    await eventually_async(lambda: kms.requests != [])
    first.cancel()
    assert (await second).get_secret_value()
    assert kms.operations() == ["Decrypt"]


async def test_callers_that_come_and_go_share_one_thread(kms: Kms) -> None:
    theirs = token(
        TokenId(OTHER_USER, "canvas"),
        encryption_scheme=None,
        access_ciphertext=envelope(kms).seal(_context(OTHER_USER)),
    )
    row = token(HERE, encryption_scheme=None, access_ciphertext=envelope(kms).seal())
    cipher = _patient(kms)
    kms.forget_requests()
    kms.faults.delay(1.5, times=1)
    for _ in range(WAITING_CALLS + 1):
        leaving = asyncio.create_task(cipher.open_access(row))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
    await eventually_async(lambda: kms.requests != [])
    staying = asyncio.create_task(cipher.open_access(row))
    assert (await cipher.open_access(theirs)).get_secret_value(), "a thread was free"
    assert (await staying).get_secret_value()
    assert kms.operations() == ["Decrypt"] * 2


async def test_a_hung_kms_delays_a_write_with_the_fallback_once(kms: Kms) -> None:
    process = envelope(kms)
    cipher = _cipher(process, fallback=True)
    kms.faults.delay(HANGS_SECONDS)
    taken, sealed = await _timed(cipher.seal(Binding(HERE, None), SecretStr("access"), SecretStr("refresh")))
    assert taken < HANG_BOUND_SECONDS
    assert (sealed.access.scheme, sealed.refresh.scheme) == ("local:v1", "local:v1")
    assert (sealed.access.fallback, sealed.refresh.fallback) == (True, True)
    assert process.counters.counts["fallback_writes"] == 1, "one per token, not one per secret"


async def test_requests_that_hang_for_ever_do_not_delay_later_ones(kms: Kms) -> None:
    """A lookup of KMS's host name may hang, and nothing bounds it."""
    released = threading.Event()
    sound = kms.client()
    ciphertext = envelope(kms).seal()

    class Stuck:
        hangs = True

        def decrypt(self, **parameters: Any) -> Any:
            if self.hangs:
                released.wait(HANGS_SECONDS)
            return sound.decrypt(**parameters)

    client = Stuck()
    process = envelope(kms, boto_client=client, deadline_seconds=0.2)
    for _ in range(5):
        with pytest.raises(KeyUnavailable):
            process.open(ciphertext)
    client.hangs = False

    def opens() -> bool:
        process.clock.advance(10)  # the breaker's cool-down
        try:
            return process.open(ciphertext) == TOKEN
        except KeyUnavailable:
            return False

    eventually(opens)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "kms"} == {True}, (
        "they keep the process from ending"
    )
    released.set()


@pytest.mark.parametrize("member", ["dk", "ct"])
async def test_a_crowd_on_a_tampered_row_shares_its_requests(kms: Kms, member: str) -> None:
    ciphertext = envelope(kms).seal()
    data = bytearray(decode(members_of(ciphertext)[member]))
    data[-1] ^= 1
    row = token(HERE, encryption_scheme=None, access_ciphertext=changed(ciphertext, **{member: encode(bytes(data))}))
    cipher = _patient(kms)
    kms.forget_requests()
    kms.faults.delay(0.2)
    answers = await asyncio.gather(*(cipher.open_access(row) for _ in range(300)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {IntegrityError}
    assert len(kms.requests) < 100


async def test_intact_ciphertexts_open_among_broken_ones(kms: Kms) -> None:
    ciphertext = envelope(kms).seal()
    data = bytearray(decode(members_of(ciphertext)["ct"]))
    data[0] ^= 1
    broken = token(HERE, encryption_scheme=None, access_ciphertext=changed(ciphertext, ct=encode(bytes(data))))
    whole = token(HERE, encryption_scheme=None, access_ciphertext=ciphertext)
    cipher = _patient(kms)
    kms.faults.delay(0.1)
    rows = [broken if number % 2 == 0 else whole for number in range(100)]
    answers = await asyncio.gather(*(cipher.open_access(row) for row in rows), return_exceptions=True)
    assert {type(answer) for answer in answers[::2]} == {IntegrityError}
    assert {answer.get_secret_value() for answer in answers[1::2] if isinstance(answer, SecretStr)} == {TOKEN}
    assert not [answer for answer in answers[1::2] if isinstance(answer, Exception)]


async def test_two_data_keys_of_a_row_share_one_deadline(kms: Kms) -> None:
    access = envelope(kms).seal()
    refresh = envelope(kms).seal(TokenContext(USER, "canvas", "default", SecretField.REFRESH_TOKEN))
    row = token(HERE, encryption_scheme=None, access_ciphertext=access, refresh_ciphertext=refresh)
    kms.faults.delay(0.7)
    with pytest.raises(KeyUnavailable):
        await _cipher(envelope(kms), key_seconds=1).open(row)


async def test_the_keys_of_an_operation_share_one_deadline(kms: Kms) -> None:
    refresh = envelope(kms).seal(TokenContext(USER, "canvas", "default", SecretField.REFRESH_TOKEN))
    row = token(HERE, encryption_scheme=None, access_ciphertext=envelope(kms).seal(), refresh_ciphertext=refresh)
    cipher = _cipher(envelope(kms, max_messages=1), key_seconds=1)
    kms.faults.delay(0.45)

    async def rotate() -> None:
        until = cipher.key_deadline()
        await cipher.seal(Binding(HERE, None), SecretStr("access"), None, until=until)
        kept = await cipher.open_refresh(row, until=until)
        await cipher.seal(Binding(HERE, None), SecretStr("access"), kept, until=until)

    with pytest.raises(KeyUnavailable):
        await rotate()


async def test_with_cached_keys_no_thread_is_used(kms: Kms) -> None:
    process = envelope(kms)
    row = token(HERE, encryption_scheme=None, access_ciphertext=process.seal())
    process.open(row.access_ciphertext)
    before = set(threading.enumerate())
    cipher = _cipher(process)
    for _ in range(20):
        assert (await cipher.open_access(row)).get_secret_value() == TOKEN
        await cipher.seal(Binding(HERE, None), SecretStr("access"), SecretStr("refresh"))
    assert set(threading.enumerate()) <= before, "a pool starts its threads at the first call"


def _context(user_id: str) -> TokenContext:
    return TokenContext(user_id, "canvas", "default", SecretField.ACCESS_TOKEN)
