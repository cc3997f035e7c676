"""Many callers wait for KMS at once: how long, at whose expense, and what they are told."""

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
from app.security.local import LocalStrategy
from app.security.service import EncryptionService
from app.tokens.cipher import WAITING_CALLS, TokenCipher
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
from tests.support.security.keys import keyring
from tests.support.stack.kms import Kms
from tests.support.stores.stores import token

# 2.5 for the key, and what a busy machine adds
RETRY_SECONDS = 3.4
HERE = TokenId(USER, "canvas")


def _cipher(process: Envelope, *, fallback: bool = False) -> TokenCipher:
    local = LocalStrategy(keyring=keyring()) if fallback else None
    return TokenCipher(
        encryption=EncryptionService(
            primary=process.strategy,
            readers=[] if local is None else [local],
            fallback=local,
            counters=process.counters,
        )
    )


async def _timed(call: Awaitable[Any]) -> tuple[float, Any]:
    started = time.monotonic()
    try:
        result: Any = await call
    except KeyUnavailable as error:
        result = error
    return time.monotonic() - started, result


async def test_a_crowd_of_cold_reads_in_an_outage_is_answered_in_time_and_told_the_truth(kms: Kms) -> None:
    row = token(HERE, access_ciphertext=envelope(kms).seal())
    cipher = _cipher(envelope(kms))
    kms.faults.delay(30)
    answers = await asyncio.gather(*(_timed(cipher.open_access(row)) for _ in range(300)))
    assert all(isinstance(answer, KeyUnavailable) for _, answer in answers), "never a store error: it is the key"
    assert max(seconds for seconds, _ in answers) < RETRY_SECONDS


async def test_a_crowd_that_waits_for_one_key_holds_up_nobody_else(kms: Kms) -> None:
    theirs = token(TokenId(OTHER_USER, "canvas"), access_ciphertext=envelope(kms).seal(_context(OTHER_USER)))
    row = token(HERE, access_ciphertext=envelope(kms).seal())
    cipher = _cipher(envelope(kms))
    kms.faults.delay(1.5, times=1)  # the crowd's one request
    crowd = [asyncio.create_task(_timed(cipher.open_access(row))) for _ in range(300)]
    await asyncio.sleep(0.2)
    assert (await cipher.open_access(theirs)).get_secret_value()
    assert not any(task.done() for task in crowd)
    assert {secret.get_secret_value() for _, secret in await asyncio.gather(*crowd)} == {TOKEN}


async def test_a_caller_that_goes_away_takes_the_key_from_nobody(kms: Kms) -> None:
    row = token(HERE, access_ciphertext=envelope(kms).seal())
    cipher = _cipher(envelope(kms))
    kms.forget_requests()
    kms.faults.delay(0.5, times=1)
    first, second = (asyncio.create_task(cipher.open_access(row)) for _ in range(2))
    await asyncio.sleep(0.1)
    first.cancel()
    assert (await second).get_secret_value()
    assert kms.operations() == ["Decrypt"]


async def test_callers_that_come_and_go_share_one_thread_that_asks_kms(kms: Kms) -> None:
    theirs = token(TokenId(OTHER_USER, "canvas"), access_ciphertext=envelope(kms).seal(_context(OTHER_USER)))
    row = token(HERE, access_ciphertext=envelope(kms).seal())
    cipher = _cipher(envelope(kms))
    kms.faults.delay(1.5, times=1)
    for _ in range(WAITING_CALLS + 1):
        leaving = asyncio.create_task(cipher.open_access(row))
        await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
    staying = asyncio.create_task(cipher.open_access(row))
    assert (await cipher.open_access(theirs)).get_secret_value()
    assert not staying.done(), "there was a thread for the others all the while"
    assert (await staying).get_secret_value()


async def test_with_the_fallback_a_hung_kms_delays_a_write_once_and_one_row_has_one_scheme(kms: Kms) -> None:
    process = envelope(kms)
    cipher = _cipher(process, fallback=True)
    kms.faults.delay(30)
    taken, sealed = await _timed(cipher.seal(HERE, SecretStr("access"), SecretStr("refresh")))
    assert taken < RETRY_SECONDS + 1, "deriving the local key included"
    assert (sealed.access.scheme, sealed.refresh.scheme) == ("local:v1", "local:v1")
    assert (sealed.access.fallback, sealed.refresh.fallback) == (True, True)
    assert process.counters.counts["fallback_writes"] == 1, "counted by tokens and not by secrets"


async def test_requests_that_hang_for_ever_hold_up_nothing_that_comes_later(kms: Kms) -> None:
    """As a look-up of KMS's name does, which nothing bounds."""
    released = threading.Event()
    sound = kms.client()
    ciphertext = envelope(kms).seal()

    class Stuck:
        hangs = True

        def decrypt(self, **parameters: Any) -> Any:
            if self.hangs:
                released.wait(60)
            return sound.decrypt(**parameters)

    client = Stuck()
    process = envelope(kms, boto_client=client, deadline_seconds=0.2)
    for _ in range(5):
        with pytest.raises(KeyUnavailable):
            process.open(ciphertext)
    client.hangs = False
    process.clock.advance(10)  # the breaker's pause
    assert process.open(ciphertext)
    assert {thread.daemon for thread in threading.enumerate() if thread.name == "kms"} == {True}, "and no exit"
    released.set()


@pytest.mark.parametrize("member", ["dk", "ct"])
async def test_a_crowd_on_a_tampered_row_is_told_so_and_shares_the_requests(kms: Kms, member: str) -> None:
    ciphertext = envelope(kms).seal()
    data = bytearray(decode(members_of(ciphertext)[member]))
    data[-1] ^= 1
    row = token(HERE, access_ciphertext=changed(ciphertext, **{member: encode(bytes(data))}))
    cipher = _cipher(envelope(kms))
    kms.forget_requests()
    kms.faults.delay(0.02)
    answers = await asyncio.gather(*(cipher.open_access(row) for _ in range(300)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {IntegrityError}
    assert len(kms.requests) < 30


async def test_whoever_has_a_whole_ciphertext_is_served_from_the_midst_of_broken_ones(kms: Kms) -> None:
    ciphertext = envelope(kms).seal()
    data = bytearray(decode(members_of(ciphertext)["ct"]))
    data[0] ^= 1
    broken = token(HERE, access_ciphertext=changed(ciphertext, ct=encode(bytes(data))))
    whole = token(HERE, access_ciphertext=ciphertext)
    cipher = _cipher(envelope(kms))
    kms.faults.delay(0.1)
    rows = [broken if number % 2 == 0 else whole for number in range(100)]
    answers = await asyncio.gather(*(cipher.open_access(row) for row in rows), return_exceptions=True)
    assert {type(answer) for answer in answers[::2]} == {IntegrityError}
    assert {answer.get_secret_value() for answer in answers[1::2] if isinstance(answer, SecretStr)} == {TOKEN}
    assert not [answer for answer in answers[1::2] if isinstance(answer, Exception)]


async def test_a_row_under_two_data_keys_is_waited_for_no_longer_than_one(kms: Kms) -> None:
    access = envelope(kms).seal()
    refresh = envelope(kms).seal(TokenContext(USER, "canvas", "default", SecretField.REFRESH_TOKEN))
    row = token(HERE, access_ciphertext=access, refresh_ciphertext=refresh)
    kms.faults.delay(1.9)
    taken, answer = await _timed(_cipher(envelope(kms)).open(row))
    assert isinstance(answer, KeyUnavailable)
    assert taken < RETRY_SECONDS


async def test_what_several_keys_are_needed_for_waits_until_one_deadline(kms: Kms) -> None:
    refresh = envelope(kms).seal(TokenContext(USER, "canvas", "default", SecretField.REFRESH_TOKEN))
    row = token(HERE, access_ciphertext=envelope(kms).seal(), refresh_ciphertext=refresh)
    cipher = _cipher(envelope(kms, max_messages=1))
    kms.faults.delay(1.1)

    async def rotate() -> None:
        until = cipher.key_deadline()
        await cipher.seal(HERE, SecretStr("access"), None, until=until)
        kept = await cipher.open_refresh(row, until=until)
        await cipher.seal(HERE, SecretStr("access"), kept, until=until)

    taken, answer = await _timed(rotate())
    assert isinstance(answer, KeyUnavailable)
    assert taken < RETRY_SECONDS


async def test_with_its_keys_at_hand_nothing_takes_a_thread(kms: Kms) -> None:
    process = envelope(kms)
    row = token(HERE, access_ciphertext=process.seal())
    process.open(row.access_ciphertext)
    before = set(threading.enumerate())
    cipher = _cipher(process)
    for _ in range(20):
        assert (await cipher.open_access(row)).get_secret_value() == TOKEN
        await cipher.seal(HERE, SecretStr("access"), SecretStr("refresh"))
    assert set(threading.enumerate()) <= before, "a pool starts its threads when it is first used"


def _context(user_id: str) -> TokenContext:
    return TokenContext(user_id, "canvas", "default", SecretField.ACCESS_TOKEN)
