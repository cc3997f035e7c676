"""Many tokens of PulsePlan's old format at once, each a PBKDF2: what it costs, and whom."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

from app.errors import IntegrityError, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.key_derivation import MAXIMUM_OF_A_SERVICE, KeyDerivationQueue
from app.security.service import EncryptionService
from app.security.strategy import KeyNotCached
from app.tokens.cipher import TokenCipher
from app.tokens.models import StoredToken, TokenId, current_service
from tests.support.security.keys import service
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.stores import token


def _old_token(ciphertext: str | None = None) -> StoredToken:
    """One whose key has to be derived; where no ciphertext is given it does not open, and costs the same."""
    junk = f"v1:{secrets.token_hex(16)}:{secrets.token_hex(16)}:{secrets.token_hex(20)}"
    return token(TokenId(str(uuid4()), "canvas"), access_ciphertext=ciphertext or junk)


async def _outcome(call: Awaitable[Any]) -> str:
    try:
        await call
    except Exception as error:  # noqa: BLE001  any, to be told apart below
        return type(error).__name__
    return "opened"


def _derived(encryption: EncryptionService, rows: list[StoredToken]) -> list[StoredToken]:
    """Return those whose key is at hand; none of them opens."""
    derived = []
    for row in rows:
        context = TokenContext(row.token_id.user_id, "canvas", "default", SecretField.ACCESS_TOKEN)
        with suppress(KeyNotCached):
            with pytest.raises(IntegrityError):
                encryption.open(row.access_ciphertext, context, wait=False)
            derived.append(row)
    return derived


async def test_a_whole_batch_of_old_tokens_of_different_users_opens() -> None:
    users = [str(uuid4()) for _ in range(20)]
    rows = [
        token(TokenId(user, "canvas"), access_ciphertext=legacy_ciphertext(f"token of {user}", user)) for user in users
    ]
    cipher = TokenCipher(encryption=service())
    opened = await asyncio.gather(*(cipher.open_access(row) for row in rows))
    assert [secret.get_secret_value() for secret in opened] == [f"token of {user}" for user in users]


async def test_a_flood_is_bounded_and_told_in_time_and_derives_nothing_for_those_who_left() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=10, wait_seconds=0.3, refusal_seconds=0.1, threads=1)
    encryption = service()
    cipher = TokenCipher(encryption=encryption, derivations=derivations)
    rows = [_old_token() for _ in range(200)]
    with _held(derivations):
        answers = [asyncio.create_task(_outcome(cipher.open_access(row))) for row in rows]
        for _, ended in zip(range(190), asyncio.as_completed(answers), strict=False):
            await ended
        await asyncio.sleep(0.4)  # those who wait have waited too long now
        refused = [task.result() for task in answers if task.done()]
        assert refused == ["KeyUnavailable"] * 190, "all but those in the queue are answered soon"
    late = await asyncio.gather(*answers)
    assert set(late) == {"KeyUnavailable"}, "they waited too long"
    assert not _derived(encryption, rows), "and nothing was begun for them"
    assert await _outcome(cipher.open_access(rows[0])) == "IntegrityError", "afterwards all is as before"
    assert _derived(encryption, rows) == rows[:1]


async def test_one_key_is_derived_once_for_a_crowd() -> None:
    user = str(uuid4())
    row = token(TokenId(user, "canvas"), access_ciphertext=legacy_ciphertext("old", user))
    cipher = TokenCipher(encryption=service(), derivations=KeyDerivationQueue(maximum_waiting=1))
    opened = await asyncio.gather(*(cipher.open_access(row) for _ in range(300)))
    assert {secret.get_secret_value() for secret in opened} == {"old"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
async def test_its_threads_have_the_lowest_priority_and_no_other_thread_has() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert await KeyDerivationQueue().submit(priority) == 19
    assert priority() == await asyncio.to_thread(priority) == here


async def test_a_place_is_given_back_however_a_derivation_ends() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=1, refusal_seconds=0.01, threads=1)

    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await derivations.submit(fails)
    with _held(derivations):
        waiting = derivations.submit(_named("it waited"))
        with pytest.raises(KeyUnavailable):
            await derivations.submit(fails)
    assert await waiting == "it waited"
    await derivations.submit(lambda: None)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
async def test_where_their_priority_may_not_be_lowered_keys_are_derived_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    derivations = KeyDerivationQueue()
    async with asyncio.timeout(10):
        assert await derivations.submit(_named("first")) == "first"
        assert await derivations.submit(_named("second")) == "second"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stack of that size may be granted or refused earlier")
async def test_where_no_thread_can_be_had_it_says_so_and_keeps_no_place() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=1, refusal_seconds=0.01)
    before = threading.stack_size(1 << 47)  # more than there are addresses
    try:
        for _ in range(3):
            with pytest.raises(KeyUnavailable, match="no thread"):
                await derivations.submit(_named("never"))
    finally:
        threading.stack_size(before)
    assert await derivations.submit(_named("again")) == "again"


async def test_who_is_refused_is_told_so_only_after_a_while() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=0, refusal_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(KeyUnavailable):
        await derivations.submit(lambda: None)
    assert time.monotonic() - began >= 0.25, "else it would ask again at once"


@contextmanager
def _held(derivations: KeyDerivationQueue) -> Iterator[None]:
    """Keep its one thread from all that is submitted meanwhile."""
    holding, held = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        holding.wait(30)

    derivations.submit(hold, service="the first")
    assert held.wait(30)
    try:
        yield
    finally:
        holding.set()


async def _outcomes(calls: list[asyncio.Future[Any]]) -> list[Any]:
    """Return what each gave, or the name of its error."""
    given = await asyncio.gather(*calls, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else one for one in given]


def _named(name: str) -> Callable[[], str]:
    return lambda: name


async def test_a_service_has_so_many_places_and_no_more() -> None:
    derivations = KeyDerivationQueue(maximum_of_a_service=10, wait_seconds=30, refusal_seconds=0.01, threads=1)
    with _held(derivations):
        calls = [derivations.submit(_named(f"a{number}"), service="a") for number in range(11)]
    assert await _outcomes(calls) == [*(f"a{number}" for number in range(10)), "KeyUnavailable"]


async def test_a_flood_takes_no_place_of_anothers_largest_batch() -> None:
    derivations = KeyDerivationQueue(wait_seconds=30, refusal_seconds=0.01, threads=1)
    with _held(derivations):
        flood = [derivations.submit(_named(f"a{number}"), service="a") for number in range(160)]
        batch = [derivations.submit(_named(f"b{number}"), service="b") for number in range(100)]
        flood += [derivations.submit(_named("late"), service="a") for _ in range(160)]
    assert await _outcomes(batch) == [f"b{number}" for number in range(100)]
    assert (await _outcomes(flood)).count("KeyUnavailable") == 320 - MAXIMUM_OF_A_SERVICE


async def test_services_take_turns_each_with_its_oldest() -> None:
    derivations = KeyDerivationQueue(wait_seconds=30, threads=1)
    done: list[str] = []
    with _held(derivations):
        submitted = [*(("a", number) for number in range(4)), ("b", 0), ("b", 1), ("c", 0)]
        calls = [
            derivations.submit(lambda name=f"{service}{number}": done.append(name), service=service)  # type: ignore[misc]  # mypy infers no default of a lambda
            for service, number in submitted
        ]
    await asyncio.gather(*calls)
    assert done == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


async def test_a_full_queue_goes_without_the_newest_of_the_service_that_has_the_most() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=5, wait_seconds=30, refusal_seconds=0.01, threads=1)
    with _held(derivations):
        a = [derivations.submit(_named(f"a{number}"), service="a") for number in range(5)]
        b = [derivations.submit(_named(f"b{number}"), service="b") for number in range(4)]
        a += [derivations.submit(_named("a5"), service="a")]
    assert await _outcomes(a) == ["a0", "a1", "a2", *["KeyUnavailable"] * 3], "it had five places of five"
    assert await _outcomes(b) == ["b0", "b1", *["KeyUnavailable"] * 2], "and keeps what the other would only take back"
    with _held(derivations):
        again = [derivations.submit(_named(f"{number}"), service="a") for number in range(6)]
    assert await _outcomes(again) == ["0", "1", "2", "3", "4", "KeyUnavailable"], "each place was given back once"


async def test_callers_that_leave_cost_no_derivation_and_no_place() -> None:
    derivations = KeyDerivationQueue(maximum_waiting=20, wait_seconds=30, refusal_seconds=0.01, threads=1)
    encryption = service()
    cipher = TokenCipher(encryption=encryption, derivations=derivations)
    rows = [_old_token() for _ in range(40)]
    with _held(derivations):
        for some in (rows[:20], rows[20:]):
            leaving = [asyncio.create_task(cipher.open_access(row)) for row in some]
            await asyncio.sleep(0.01)
            assert not any(task.done() for task in leaving), "each has a place, those of the others before"
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            await asyncio.sleep(0.01)
        staying = asyncio.create_task(_outcome(cipher.open_access(staying_row := _old_token())))
        await asyncio.sleep(0.01)
    assert await staying == "IntegrityError"
    assert _derived(encryption, [*rows, staying_row]) == [staying_row]


async def test_a_key_is_derived_for_whoever_stays_though_the_first_or_the_second_leaves() -> None:
    derivations = KeyDerivationQueue(wait_seconds=30, threads=1)
    for leaves in (0, 1):
        encryption, row = service(), _old_token()
        cipher = TokenCipher(encryption=encryption, derivations=derivations)
        with _held(derivations):
            crowd = [asyncio.create_task(_outcome(cipher.open_access(row))) for _ in range(3)]
            await asyncio.sleep(0.01)
            crowd.pop(leaves).cancel()
            await asyncio.sleep(0.01)
        assert [await one for one in crowd] == ["IntegrityError"] * 2
        assert _derived(encryption, [row]) == [row]


async def test_who_comes_as_the_last_one_leaves_has_the_key_derived_anew() -> None:
    derivations = KeyDerivationQueue(wait_seconds=30, threads=1)
    cipher = TokenCipher(encryption=service(), derivations=derivations)
    row = _old_token()
    with _held(derivations):
        first = asyncio.create_task(_outcome(cipher.open_access(row)))
        await asyncio.sleep(0.01)
        first.cancel()  # and before it is gone from the list of those that may be waited for
        second = asyncio.create_task(_outcome(cipher.open_access(row)))
        third = asyncio.create_task(_outcome(cipher.open_access(row)))
        await asyncio.sleep(0.01)
    assert [await second, await third] == ["IntegrityError"] * 2


async def test_the_turn_of_a_service_does_not_wait_for_anothers_for_the_same_key() -> None:
    """One user's token, read by a service with a long queue and then by one without."""
    derivations = KeyDerivationQueue(wait_seconds=30, threads=1)
    cipher = TokenCipher(encryption=service(), derivations=derivations)
    user = str(uuid4())
    row = token(TokenId(user, "canvas"), access_ciphertext=legacy_ciphertext("old", user))

    async def read(name: str) -> str:
        current_service.set(name)  # this task's own
        return (await cipher.open_access(row)).get_secret_value()

    slow: list[asyncio.Future[None]] = []
    with _held(derivations):
        slow += [derivations.submit(lambda: time.sleep(0.05), service="a") for _ in range(20)]
        a = asyncio.create_task(read("a"))
        await asyncio.sleep(0.01)
        b = asyncio.create_task(read("b"))
        await asyncio.sleep(0.01)
    assert await b == "old"
    assert not slow[-1].done(), "it was not behind them"
    assert await a == "old"
