"""Callers that go away and pools that run dry, ten thousand times: afterwards everything works."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import AsyncIterator
from uuid import uuid4

import httpx
import pytest

from app.errors import StoreError
from app.tokens.models import TokenId
from app.tokens.repository import TokenRepository
from tests.support.api.service import Service
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import Store, SupabaseStore, token

TIMES = 10_000
CANVAS = TokenId(str(uuid4()), "canvas")


@pytest.fixture
async def tokens(supabase: SupabaseStack) -> AsyncIterator[TokenRepository]:
    async with SupabaseStore(supabase).open() as repository:
        yield repository


async def _works_within_5_seconds(tokens: TokenRepository) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                rows = await asyncio.gather(*(tokens.get(CANVAS) for _ in range(100)))
            except StoreError:
                await asyncio.sleep(0.1)
            else:
                assert all(row is not None for row in rows)
                return


async def test_ten_thousand_cancelled_requests_leave_the_pool_whole(
    tokens: TokenRepository, supabase: SupabaseStack
) -> None:
    await tokens.insert(token(CANVAS))
    supabase.faults.delay(before=0.02)
    chance = random.Random(7)  # noqa: S311  when a caller leaves

    async def abandon() -> None:
        request = asyncio.ensure_future(tokens.get(CANVAS))
        await asyncio.sleep(chance.uniform(0, 0.03))
        request.cancel()
        await asyncio.wait([request])

    for _ in range(TIMES // 500):
        # far more than there are connections, so that many are cancelled while they wait for one
        await asyncio.gather(*(abandon() for _ in range(500)))
    supabase.faults.clear()
    await _works_within_5_seconds(tokens)


async def test_ten_thousand_pool_time_outs_leave_the_pool_whole(
    tokens: TokenRepository, supabase: SupabaseStack
) -> None:
    await tokens.insert(token(CANVAS))
    supabase.faults.delay(before=30)
    outcomes: list[object] = []
    for _ in range(TIMES // 2_500):
        outcomes += await asyncio.gather(*(tokens.get(CANVAS) for _ in range(2_500)), return_exceptions=True)
    assert len(outcomes) == TIMES
    assert all(isinstance(outcome, StoreError) for outcome in outcomes)
    supabase.faults.clear()
    await _works_within_5_seconds(tokens)


def test_callers_that_go_away_over_http_leave_the_service_whole(served: tuple[Service, Store]) -> None:
    service, _ = served
    path = f"/v1/users/{uuid4()}/tokens/canvas"
    url = httpx.URL(service.url)
    with service.client() as client:
        assert client.put(path, json={"access_token": "x"}).status_code == 201
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.keys['full']}\r\n\r\n".encode()
        for _ in range(2_000):
            with socket.create_connection((url.host, url.port)) as connection:
                connection.sendall(request)
        deadline = time.monotonic() + 5
        answer = client.get(path)
        assert time.monotonic() < deadline
        assert answer.json()["access_token"] == "x"
