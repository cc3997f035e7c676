"""PostgreSQL repositories at a URL, and what is done to their connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config.database_url import parse_database_url
from app.errors import StoreUnavailable
from app.stores.postgres.errors import FULL
from app.stores.postgres.repository import PostgresRepository
from app.tokens.repository import TokenRepository
from tests.support.stores.stores import token


@asynccontextmanager
async def connected(url: str, *, pool_size: int = 4) -> AsyncIterator[PostgresRepository]:
    repository = await PostgresRepository.connect(url=lambda: parse_database_url(url), pool_size=pool_size)
    try:
        yield repository
    finally:
        await repository.close()


async def cancel_many(tokens: TokenRepository, count: int) -> None:
    """Cancel this many reads and writes at different moments; none of them may end with another error."""
    for turn in range(count // 10):
        calls = [asyncio.ensure_future(tokens.insert(token())) for _ in range(5)]
        reads = [asyncio.ensure_future(tokens.list_for_user(token().token_id.user_id)) for _ in range(5)]
        await asyncio.sleep(turn % 7 / 2_000)
        for call in (*calls, *reads):
            call.cancel()
        for result in await asyncio.gather(*calls, *reads, return_exceptions=True):
            full = isinstance(result, StoreUnavailable) and str(result) == FULL  # on a busy machine
            if isinstance(result, BaseException) and not full and not isinstance(result, asyncio.CancelledError):
                raise result
