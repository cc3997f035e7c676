"""Concurrent lookups share requests, and nobody gets another's answer."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from app.errors import StoreUnavailable
from app.stores.supabase.lookup_queue import BATCH_IDS, IN_FLIGHT
from app.tokens.models import TokenId
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore, token


async def test_a_hundred_lookups_are_a_few_requests_and_each_gets_its_own(supabase: SupabaseStack) -> None:
    rows = [token(TokenId(str(uuid4()), "canvas")) for _ in range(100)]
    missing = TokenId(str(uuid4()), "canvas")
    async with SupabaseStore(supabase).open() as tokens:
        await asyncio.gather(*(tokens.insert(row) for row in rows))
        with supabase.recording() as requests:
            found = await asyncio.gather(*(tokens.get(row.token_id) for row in rows), tokens.get(missing))
        assert found == [*rows, None]
        ours = [one for one in requests if any(row.token_id.user_id in one.target for row in rows)]
        assert len(ours) <= IN_FLIGHT + -(-len(rows) // BATCH_IDS) + 1


async def test_a_failed_request_fails_all_that_it_carried_and_none_after(supabase: SupabaseStack) -> None:
    row = token()
    async with SupabaseStore(supabase).open() as tokens:
        await tokens.insert(row)
        supabase.faults.answer(503)
        outcomes = await asyncio.gather(*(tokens.get(row.token_id) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert len({id(outcome) for outcome in outcomes}) == 50, "each raises an error of its own"
        supabase.faults.clear()
        assert await tokens.get(row.token_id) == row


async def test_a_caller_that_leaves_takes_nobody_along(supabase: SupabaseStack) -> None:
    row = token()
    async with SupabaseStore(supabase).open() as tokens:
        await tokens.insert(row)
        supabase.faults.delay(before=1.0)
        lookups = [asyncio.ensure_future(tokens.get(row.token_id)) for _ in range(40)]
        await asyncio.sleep(0.05)
        for lookup in lookups[::2]:
            lookup.cancel()
        results = await asyncio.gather(*lookups, return_exceptions=True)
        assert results[1::2] == [row] * 20
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])


async def test_a_store_that_is_closed_leaves_no_caller_waiting(supabase: SupabaseStack) -> None:
    supabase.faults.delay(before=30)
    store = SupabaseStore(supabase)
    async with store.open() as tokens:
        lookups = [asyncio.ensure_future(tokens.get(TokenId(str(uuid4()), "canvas"))) for _ in range(10)]
        await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*lookups, return_exceptions=True)
    with pytest.raises(Exception, match=r"gave up|given up|in time"):
        raise next(result for result in results if isinstance(result, Exception))
