"""Many tokens of PulsePlan's old format at once, each a PBKDF2: what it costs, and whom."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
import threading
import time
from collections.abc import Awaitable
from typing import Any
from uuid import uuid4

import pytest

from app.errors import KeyUnavailable
from app.tokens.derivations import MAXIMUM_WAITING, Derivations
from app.tokens.models import StoredToken, TokenId
from app.tokens.token_cipher import KEY_SECONDS, TokenCipher
from tests.security.keys import service
from tests.security.legacy_tokens import legacy_ciphertext
from tests.tokens.stores import token


def _old_token(ciphertext: str | None = None) -> StoredToken:
    """One whose key has to be derived; where no ciphertext is given it does not open, and costs the same."""
    junk = f"v1:{secrets.token_hex(16)}:{secrets.token_hex(16)}:{secrets.token_hex(20)}"
    return token(TokenId(str(uuid4()), "canvas"), access_ciphertext=ciphertext or junk)


async def _outcome(call: Awaitable[Any]) -> tuple[float, str]:
    began = time.monotonic()
    try:
        await call
    except Exception as error:  # noqa: BLE001  any, to be told apart below
        return time.monotonic() - began, type(error).__name__
    return time.monotonic() - began, "opened"


async def test_a_whole_batch_of_old_tokens_of_different_users_opens() -> None:
    users = [str(uuid4()) for _ in range(20)]
    rows = [
        token(TokenId(user, "canvas"), access_ciphertext=legacy_ciphertext(f"token of {user}", user)) for user in users
    ]
    cipher = TokenCipher(encryption=service())
    opened = await asyncio.gather(*(cipher.open_access(row) for row in rows))
    assert [secret.get_secret_value() for secret in opened] == [f"token of {user}" for user in users]
    assert MAXIMUM_WAITING >= 100, "the largest batch"


async def test_a_flood_is_bounded_and_told_in_time_and_derives_nothing_for_those_who_left() -> None:
    derivations = Derivations(maximum_waiting=10, wait_seconds=0.3, refusal_seconds=0.1)
    cipher = TokenCipher(encryption=service(), derivations=derivations)
    holding = threading.Event()
    threads = [derivations.submit(lambda: holding.wait(10)) for _ in range(max(1, (os.cpu_count() or 1) - 1))]
    answers = [asyncio.create_task(_outcome(cipher.open_access(_old_token()))) for _ in range(200)]
    await asyncio.sleep(0.4)
    refused = [task.result() for task in answers if task.done()]
    assert len(refused) == 200 - (10 - len(threads)), "all but those in the queue are answered soon"
    assert {name for _, name in refused} == {"KeyUnavailable"}
    assert max(seconds for seconds, _ in refused) < 0.4
    before = time.process_time()
    holding.set()
    late = await asyncio.gather(*answers)
    assert {name for _, name in late} == {"KeyUnavailable"}, "they waited too long, and nothing was begun for them"
    assert max(seconds for seconds, _ in late) < KEY_SECONDS + 0.5
    assert time.process_time() - before < 0.1, "nine derivations would take twice as much at least"
    assert (await _outcome(cipher.open_access(_old_token())))[1] == "IntegrityError", "afterwards all is as before"


async def test_one_key_is_derived_once_for_a_crowd() -> None:
    user = str(uuid4())
    row = token(TokenId(user, "canvas"), access_ciphertext=legacy_ciphertext("old", user))
    cipher = TokenCipher(encryption=service(), derivations=Derivations(maximum_waiting=1))
    opened = await asyncio.gather(*(cipher.open_access(row) for _ in range(300)))
    assert {secret.get_secret_value() for secret in opened} == {"old"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities belong to processes")
async def test_its_threads_have_the_lowest_priority_and_no_other_thread_has() -> None:
    def priority() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    here = priority()
    assert await Derivations().submit(priority) == 19
    assert priority() == await asyncio.to_thread(priority) == here


async def test_a_place_is_given_back_however_a_derivation_ends() -> None:
    derivations = Derivations(maximum_waiting=1, refusal_seconds=0.01)

    def fails() -> None:
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await derivations.submit(fails)
    slow = derivations.submit(lambda: time.sleep(0.05))
    with pytest.raises(KeyUnavailable):
        await derivations.submit(fails)
    await slow
    await derivations.submit(lambda: None)


async def test_who_is_refused_is_told_so_only_after_a_while() -> None:
    derivations = Derivations(maximum_waiting=0, refusal_seconds=0.3)
    began = time.monotonic()
    with pytest.raises(KeyUnavailable):
        await derivations.submit(lambda: None)
    assert time.monotonic() - began >= 0.25, "else it would ask again at once"
