"""Concurrent reads of single tokens share requests, and each caller gets its own answer."""

from __future__ import annotations

import asyncio
from uuid import uuid4

from app.errors import StoreTimeout, StoreUnavailable
from app.stores.read_batching import MAXIMUM_REQUESTS
from app.tokens.models import TokenId
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore, insert_all, token
from tests.support.waiting import eventually_async

BATCH_TOKENS = 25  # as the repository sets it


async def test_a_hundred_reads_share_a_few_requests(supabase: SupabaseStack) -> None:
    rows = [token(TokenId(str(uuid4()), "canvas")) for _ in range(100)]
    missing = TokenId(str(uuid4()), "canvas")
    async with SupabaseStore(supabase).open() as tokens:
        await insert_all(tokens, rows)
        with supabase.recording() as requests:
            found = await asyncio.gather(*(tokens.get(row.token_id) for row in rows), tokens.get(missing))
        assert found == [*rows, None], "each caller gets its own token"
        ours = [one for one in requests if any(row.token_id.user_id in one.target for row in rows)]
        assert len(ours) <= MAXIMUM_REQUESTS + len(rows) // BATCH_TOKENS + 1


async def test_a_failed_request_fails_its_own_reads_only(supabase: SupabaseStack) -> None:
    row = token()
    async with SupabaseStore(supabase).open() as tokens:
        await tokens.insert(row)
        supabase.faults.answer(503)
        outcomes = await asyncio.gather(*(tokens.get(row.token_id) for _ in range(50)), return_exceptions=True)
        assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes)
        assert len({id(outcome) for outcome in outcomes}) == 50, "each caller gets its own exception"
        supabase.faults.clear()
        assert await tokens.get(row.token_id) == row


async def test_a_cancelled_read_does_not_cancel_the_others(supabase: SupabaseStack) -> None:
    row = token()
    async with SupabaseStore(supabase).open() as tokens:
        await tokens.insert(row)
        supabase.faults.delay(before=0.5)
        with supabase.recording() as requests:
            reads = [asyncio.ensure_future(tokens.get(row.token_id)) for _ in range(40)]
            await eventually_async(lambda: len(requests) == MAXIMUM_REQUESTS)
        for read in reads[::2]:
            read.cancel()
        results = await asyncio.gather(*reads, return_exceptions=True)
        assert results[1::2] == [row] * 20
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])


async def test_closing_the_store_ends_every_waiting_read(supabase: SupabaseStack) -> None:
    supabase.faults.delay(before=60)
    async with SupabaseStore(supabase).open() as tokens:
        with supabase.recording() as requests:
            reads = [asyncio.ensure_future(tokens.get(TokenId(str(uuid4()), "canvas"))) for _ in range(10)]
            await eventually_async(lambda: len(requests) == MAXIMUM_REQUESTS)
    async with asyncio.timeout(30):
        results = await asyncio.gather(*reads, return_exceptions=True)
    assert all(isinstance(result, StoreTimeout) for result in results)
