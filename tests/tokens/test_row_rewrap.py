"""The outcome of a rewrap whose answer is lost, through the API's operation and on read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import pytest

from app.errors import StoreUnavailable
from app.rewrap.on_read import RewrapOnRead
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, StoredToken
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault
from tests.support.rewrap.stored_rows import SupabaseRows, local_encryption, sealed_row
from tests.support.rewrap.sweeps import Observed
from tests.support.stack.gateway_faults import Request
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore, rows_by_id

CALLER: Final = Caller("tests")
RewrapOne = Callable[[TokenRepository, StoredToken, TokenEvents], Awaitable[None]]


def _write(request: Request) -> bool:
    return "replace_ciphertexts" in request.target


def _read_back(request: Request) -> bool:
    return "token_vault_read_back" in request.target


async def _asked(tokens: TokenRepository, token: StoredToken, events: TokenEvents) -> None:
    vault = TokenVault(tokens=tokens, cipher=TokenCipher(encryption=local_encryption(2)), events=events)
    await vault.rewrap(token.token_id, caller=CALLER)


async def _on_read(tokens: TokenRepository, token: StoredToken, events: TokenEvents) -> None:
    cipher = TokenCipher(encryption=local_encryption(2))
    on_read = RewrapOnRead(tokens=tokens, cipher=cipher, events=events, delay_seconds=0)
    on_read.offer(token)
    await asyncio.sleep(0.01)
    await on_read.close()


async def _rewrap_with_faults(supabase: SupabaseStack, rewrap: RewrapOne, observed: Observed) -> None:
    """Insert a token under the first key, arm the fault, and rewrap it."""
    row = sealed_row(local_encryption(1))
    SupabaseRows(supabase).insert([row])
    async with SupabaseStore(supabase).open() as tokens:
        token = (await rows_by_id(tokens, [row["id"]]))[row["id"]]
        supabase.faults.cut_after_commit(when=_write)
        await rewrap(tokens, token, TokenEvents(audit=NoAuditTrail(), observers=[observed]))


@pytest.mark.parametrize("rewrap", [_asked, _on_read])
async def test_a_committed_rewrap_is_a_success(supabase: SupabaseStack, rewrap: RewrapOne) -> None:
    observed = Observed()
    await _rewrap_with_faults(supabase, rewrap, observed)
    assert SupabaseRows(supabase).count("local:v2") == 1
    [event] = observed.events
    assert (event.outcome, event.scheme) == ("success", "local:v2")


async def test_a_rewrap_that_never_arrived_is_an_error_and_is_not_repeated(supabase: SupabaseStack) -> None:
    sent: list[str] = []

    def noted(request: Request) -> bool:
        sent.extend([request.target] if _write(request) else [])
        return _write(request)

    supabase.faults.cut_before(when=noted)
    observed = Observed()
    with pytest.raises(StoreUnavailable):
        await _rewrap_with_faults(supabase, _asked, observed)
    assert SupabaseRows(supabase).count("local:v1") == 1
    assert [event.outcome for event in observed.events] == ["store_unavailable"]
    assert len(sent) == 1


async def test_a_rewrap_that_cannot_be_read_back_is_no_success(supabase: SupabaseStack) -> None:
    observed = Observed()
    row = sealed_row(local_encryption(1))
    SupabaseRows(supabase).insert([row])
    async with SupabaseStore(supabase).open() as tokens:
        token = (await rows_by_id(tokens, [row["id"]]))[row["id"]]
        supabase.faults.cut_after_commit(when=_write)
        supabase.faults.answer(503, when=_read_back)
        with pytest.raises(StoreUnavailable):
            await _asked(tokens, token, TokenEvents(audit=NoAuditTrail(), observers=[observed]))
    assert [event.outcome for event in observed.events] == ["store_unavailable"]


async def test_a_newer_token_found_at_the_read_back_stays(supabase: SupabaseStack) -> None:
    """The rewrap starts over, finds a token under the primary, and leaves it alone."""
    newer = sealed_row(local_encryption(2))

    def replaced(request: Request) -> bool:
        if _read_back(request) and SupabaseRows(supabase).count("local:v2"):
            supabase.sql("update public.oauth_tokens set access_token = %s, version = 9", [newer["access_token"]])
        return False

    row = sealed_row(local_encryption(1))
    SupabaseRows(supabase).insert([row])
    observed = Observed()
    async with SupabaseStore(supabase).open() as tokens:
        token = (await rows_by_id(tokens, [row["id"]]))[row["id"]]
        supabase.faults.cut_after_commit(when=_write)
        supabase.faults.answer(503, when=replaced)
        on_read = _on_read(tokens, token, TokenEvents(audit=NoAuditTrail(), observers=[observed]))
        await on_read
    [after] = SupabaseRows(supabase).rows().values()
    assert (after["access_token"], after["version"]) == (newer["access_token"], 9)
    assert observed.events == [], "the newer write has its own event"
