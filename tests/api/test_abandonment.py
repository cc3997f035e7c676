"""Connection pools after callers that disconnect and after time-outs: no slot is lost."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from app.errors import StoreError
from app.tokens.models import TokenId
from app.tokens.repository import TokenRepository
from tests.support.api.service import Service
from tests.support.sizes import size
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import Store, SupabaseStore, token

# a pool holds fewer connections than this, so losing one for each would leave none
CANCELLED = size(2_000, 10_000)
TIMED_OUT = size(1_000, 10_000)
DISCONNECTED = size(500, 2_000)
CANVAS = TokenId(str(uuid4()), "canvas")


@pytest.fixture
async def tokens(supabase: SupabaseStack) -> AsyncIterator[TokenRepository]:
    async with SupabaseStore(supabase).open() as repository:
        yield repository


async def _recovers(tokens: TokenRepository) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                rows = await asyncio.gather(*(tokens.get(CANVAS) for _ in range(100)))
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                assert all(row is not None for row in rows)
                return


async def test_cancelled_requests_leave_the_pool_whole(tokens: TokenRepository, supabase: SupabaseStack) -> None:
    await tokens.insert(token(CANVAS))
    supabase.faults.delay(before=0.02)
    chance = random.Random(7)  # noqa: S311  the moment at which a caller disconnects

    async def abandon() -> None:
        request = asyncio.ensure_future(tokens.get(CANVAS))
        await asyncio.sleep(chance.uniform(0, 0.03))
        request.cancel()
        await asyncio.wait([request])

    for _ in range(CANCELLED // 500):
        # far more than there are connections, so that many are cancelled while they wait for one
        await asyncio.gather(*(abandon() for _ in range(500)))
    supabase.faults.clear()
    await _recovers(tokens)


async def test_pool_time_outs_leave_the_pool_whole(tokens: TokenRepository, supabase: SupabaseStack) -> None:
    await tokens.insert(token(CANVAS))
    supabase.faults.delay(before=30)
    outcomes: list[object] = []
    for _ in range(TIMED_OUT // 1_000):
        outcomes += await asyncio.gather(*(tokens.get(CANVAS) for _ in range(1_000)), return_exceptions=True)
    assert len(outcomes) == TIMED_OUT
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    supabase.faults.clear()
    await _recovers(tokens)


def test_callers_that_disconnect_leave_the_service_whole(served: tuple[Service, Store]) -> None:
    service, _ = served
    path = f"/v1/users/{uuid4()}/tokens/canvas"
    url = httpx.URL(service.url)
    with service.client() as client:
        assert client.put(path, json={"access_token": "x"}).status_code == 201
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['full']}\r\n\r\n".encode()
        for _ in range(DISCONNECTED):
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(request)
        assert client.get(path).json()["access_token"] == "x"
