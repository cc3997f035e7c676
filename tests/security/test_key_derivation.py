"""Key derivation queue: bounds, shares of services, callers that leave, and reads of PulsePlan's tokens through it."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import uuid4

import pytest

from app.errors import IntegrityError, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.key_derivation import MAXIMUM_OF_A_SERVICE, KeyDerivationQueue
from app.security.strategy import KeyNotCached
from app.tokens.cipher import TokenCipher
from app.tokens.models import StoredToken, TokenId, current_service
from tests.support.security.keys import service
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.stores import token

_SECONDS = 30


@asynccontextmanager
async def _held(queue: KeyDerivationQueue) -> AsyncIterator[None]:
    """Occupy the queue's only thread inside of the block."""
    held, released = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        released.wait(_SECONDS)

    holding = asyncio.create_task(queue.run(hold, service="holder"))
    assert await asyncio.to_thread(held.wait, _SECONDS)
    try:
        yield
        await _run_up_to_their_waits()
    finally:
        released.set()
        await holding


async def _run_up_to_their_waits() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def _run(queue: KeyDerivationQueue, service: str, result: str) -> asyncio.Task[str]:
    return asyncio.create_task(queue.run(lambda: result, service=service))


async def _outcomes(tasks: list[asyncio.Task[Any]]) -> list[Any]:
    """Return the results, or the names of the errors."""
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    return [type(one).__name__ if isinstance(one, BaseException) else one for one in outcomes]


def _cipher(encryption: EncryptionService, queue: KeyDerivationQueue | None = None) -> TokenCipher:
    """Return a cipher whose keys may take as long as a busy machine needs."""
    return TokenCipher(encryption=encryption, derivations=queue, key_seconds=10 * _SECONDS)


def _token_that_does_not_open() -> StoredToken:
    """Return a token that costs a derivation and then raises `IntegrityError`."""
    junk = f"v1:{secrets.token_hex(16)}:{secrets.token_hex(16)}:{secrets.token_hex(20)}"
    return token(TokenId(str(uuid4()), "canvas"), encryption_scheme=None, access_ciphertext=junk)


def _token_that_opens(plaintext: str) -> StoredToken:
    user = str(uuid4())
    return token(TokenId(user, "canvas"), encryption_scheme=None, access_ciphertext=legacy_ciphertext(plaintext, user))


def _derived(encryption: EncryptionService, rows: list[StoredToken]) -> list[StoredToken]:
    """Return the rows of `_token_that_does_not_open` whose keys are cached."""
    derived = []
    for row in rows:
        context = TokenContext(row.token_id.user_id, "canvas", "default", SecretField.ACCESS_TOKEN)
        with suppress(KeyNotCached):
            with pytest.raises(IntegrityError):
                encryption.open(row.access_ciphertext, context, wait=False)
            derived.append(row)
    return derived


# The queue alone


async def test_a_place_is_freed_however_a_derivation_ends() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=1, refusal_seconds=0, threads=1)

    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await queue.run(fails)
    leaving = _run(queue, "", "not derived")
    leaving.cancel()
    await asyncio.wait([leaving])
    assert await queue.run(lambda: "derived") == "derived"
    assert not queue._shares, "a service without derivations is kept"  # noqa: SLF001  memory has no public name


async def test_a_running_derivation_keeps_its_place_when_its_caller_leaves() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=2, refusal_seconds=0, threads=1)
    order: list[str] = []
    running, released = threading.Event(), threading.Event()

    def hold() -> None:
        running.set()
        released.wait(_SECONDS)
        raise ZeroDivisionError

    leaving = asyncio.create_task(queue.run(hold, service="a"))
    assert await asyncio.to_thread(running.wait, _SECONDS)
    leaving.cancel()
    await _run_up_to_their_waits()
    second = asyncio.create_task(queue.run(lambda: order.append("a"), service="a"))
    await _run_up_to_their_waits()
    third = _run(queue, "a", "refused")
    other = asyncio.create_task(queue.run(lambda: order.append("b"), service="b"))
    await _run_up_to_their_waits()
    released.set()
    assert await _outcomes([leaving, second, third, other]) == ["CancelledError", None, "KeyUnavailable", None]
    assert order == ["b", "a"]


async def test_a_service_with_too_many_derivations_is_refused() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=10, refusal_seconds=0, threads=1)
    async with _held(queue):
        tasks = [_run(queue, "a", f"a{number}") for number in range(11)]
    assert await _outcomes(tasks) == [*(f"a{number}" for number in range(10)), "KeyUnavailable"]


async def test_a_refusal_comes_after_a_pause() -> None:
    """A caller that is refused at once asks again at once."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(KeyUnavailable) as refused:
        await KeyDerivationQueue(maximum_of_a_service=0, refusal_seconds=0.2).run(lambda: None)
    assert loop.time() - began >= 0.2
    assert refused.value.retry_after_seconds == 2


async def test_a_flood_takes_no_place_of_another_service() -> None:
    queue = KeyDerivationQueue(refusal_seconds=0, threads=1)
    async with _held(queue):
        flood = [_run(queue, "a", "a") for _ in range(3 * MAXIMUM_OF_A_SERVICE)]
        batch = [_run(queue, "b", f"b{number}") for number in range(100)]
    assert await _outcomes(batch) == [f"b{number}" for number in range(100)]
    assert (await _outcomes(flood)).count("KeyUnavailable") == 2 * MAXIMUM_OF_A_SERVICE


async def test_services_alternate_each_with_its_oldest_derivation() -> None:
    queue = KeyDerivationQueue(threads=1)
    order: list[str] = []
    async with _held(queue):
        tasks = []
        for name in ("a0", "a1", "a2", "a3", "b0", "b1", "c0"):
            derive: Callable[[], None] = lambda name=name: order.append(name)  # type: ignore[misc]  # noqa: E731  mypy infers no default of a lambda
            tasks.append(asyncio.create_task(queue.run(derive, service=name[0])))
    await asyncio.gather(*tasks)
    assert [name for name in order if name[0] == "a"] == ["a0", "a1", "a2", "a3"]
    assert set(order[:3]) == {"a0", "b0", "c0"}
    assert set(order[3:5]) == {"a1", "b1"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
async def test_its_threads_have_a_low_priority_and_no_other_thread_has() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert await KeyDerivationQueue().run(priority) == max(10, here)
    assert priority() == await asyncio.to_thread(priority) == here


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
async def test_keys_are_derived_where_the_priority_may_not_be_lowered(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    queue = KeyDerivationQueue()
    async with asyncio.timeout(_SECONDS):
        assert [await queue.run(lambda: "first"), await queue.run(lambda: "second")] == ["first", "second"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stack of that size may be granted or refused earlier")
async def test_without_a_thread_it_is_unavailable_and_keeps_no_place() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=1)
    before = threading.stack_size(1 << 47)  # more than there are addresses
    try:
        for _ in range(3):
            with pytest.raises(KeyUnavailable, match="no thread"):
                await queue.run(lambda: "not derived")
    finally:
        threading.stack_size(before)
    assert await queue.run(lambda: "derived") == "derived"


# Reads of PulsePlan's tokens


async def test_a_batch_of_old_tokens_of_different_users_opens() -> None:
    rows = [_token_that_opens(f"token {number}") for number in range(6)]
    cipher = _cipher(service())
    opened = await asyncio.gather(*(cipher.open_access(row) for row in rows))
    assert [secret.get_secret_value() for secret in opened] == [f"token {number}" for number in range(6)]


async def test_one_key_is_derived_once_for_a_crowd() -> None:
    row = _token_that_opens("old")
    cipher = _cipher(service(), KeyDerivationQueue(maximum_of_a_service=1))
    opened = await asyncio.gather(*(cipher.open_access(row) for _ in range(300)))
    assert {secret.get_secret_value() for secret in opened} == {"old"}


async def test_nothing_is_derived_for_reads_that_waited_too_long() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=10, refusal_seconds=0, threads=1)
    encryption = service()
    impatient = TokenCipher(encryption=encryption, derivations=queue, key_seconds=0.2)
    rows = [_token_that_does_not_open() for _ in range(50)]
    async with _held(queue):
        outcomes = await _outcomes([asyncio.create_task(impatient.open_access(row)) for row in rows])
    assert outcomes == ["KeyUnavailable"] * 50
    assert not _derived(encryption, rows)
    with pytest.raises(IntegrityError):
        await _cipher(encryption, queue).open_access(rows[0])
    assert _derived(encryption, rows) == rows[:1]


async def test_callers_that_leave_cost_no_derivation_and_no_place() -> None:
    queue = KeyDerivationQueue(maximum_of_a_service=20, refusal_seconds=0, threads=1)
    encryption = service()
    cipher = _cipher(encryption, queue)
    rows = [_token_that_does_not_open() for _ in range(41)]
    async with _held(queue):
        for some in (rows[:20], rows[20:40]):
            leaving = [asyncio.create_task(cipher.open_access(row)) for row in some]
            await _run_up_to_their_waits()
            assert not any(task.done() for task in leaving), "one was refused"
            for task in leaving:
                task.cancel()
            await asyncio.wait(leaving)
            await _run_up_to_their_waits()
        staying = asyncio.create_task(cipher.open_access(rows[40]))
    assert await _outcomes([staying]) == ["IntegrityError"]
    assert _derived(encryption, rows) == [rows[40]]


@pytest.mark.parametrize("leaves", [0, 1])
async def test_a_key_is_derived_for_callers_that_stay(leaves: int) -> None:
    queue = KeyDerivationQueue(threads=1)
    encryption, row = service(), _token_that_does_not_open()
    cipher = _cipher(encryption, queue)
    async with _held(queue):
        crowd = [asyncio.create_task(cipher.open_access(row)) for _ in range(3)]
        await _run_up_to_their_waits()
        crowd.pop(leaves).cancel()
    assert await _outcomes(crowd) == ["IntegrityError"] * 2
    assert _derived(encryption, [row]) == [row]


async def test_a_caller_that_comes_as_the_last_one_leaves_is_served() -> None:
    queue = KeyDerivationQueue(threads=1)
    cipher = _cipher(service(), queue)
    row = _token_that_does_not_open()
    async with _held(queue):
        first = asyncio.create_task(cipher.open_access(row))
        await _run_up_to_their_waits()
        first.cancel()  # and before its derivation is cancelled
        others = [asyncio.create_task(cipher.open_access(row)) for _ in range(2)]
    assert await _outcomes(others) == ["IntegrityError"] * 2


async def test_a_service_does_not_wait_in_the_queue_of_another_for_the_same_key() -> None:
    queue = KeyDerivationQueue(threads=1)
    cipher = _cipher(service(), queue)
    row = _token_that_opens("old")
    order: list[str] = []

    async def read(name: str) -> None:
        current_service.set(name)  # in this task's own context
        assert (await cipher.open_access(row)).get_secret_value() == "old"
        order.append(name)

    async with _held(queue):
        for _ in range(20):
            _run(queue, "a", "before a's read")
        await _run_up_to_their_waits()
        tasks = [asyncio.create_task(read("a")), asyncio.create_task(read("b"))]
    await asyncio.gather(*tasks)
    assert order == ["b", "a"]
