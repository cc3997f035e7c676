"""The store rate of the repository alone, without HTTP and encryption."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import uvloop

from app.stores.sqlite.repository import SqliteRepository
from app.tokens.models import StoredToken, TokenId, TokenStatus
from benchmarks.load import Load


def store_raw(path: Path, *, writers: int, seconds: float) -> Load:
    """Insert rows from `tasks` concurrent tasks."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_store(path, writers, seconds))


async def _store(path: Path, writers: int, seconds: float) -> Load:
    repository = SqliteRepository(path=path)
    latencies: list[float] = []
    busy, start = time.process_time(), time.perf_counter()

    async def write() -> None:
        while (begun := time.perf_counter()) < start + seconds:
            assert await repository.insert(_new_token()) is not None
            latencies.append(time.perf_counter() - begun)

    try:
        await asyncio.gather(*(write() for _ in range(writers)))
        elapsed = time.perf_counter() - start
        return Load(elapsed, tuple(latencies), (time.process_time() - busy) / elapsed)
    finally:
        await repository.close()


def _new_token() -> StoredToken:
    now = datetime.now(UTC)
    return StoredToken(
        id=str(uuid4()),
        token_id=TokenId(str(uuid4()), "canvas"),
        access_ciphertext="v1:" + "A" * 180,
        refresh_ciphertext=None,
        encryption_scheme="local:v1",
        encryption_method="aes256-gcm-v1",
        kms_key_id=None,
        encryption_fallback=False,
        status=TokenStatus.OK,
        status_reason=None,
        expires_at=now,
        scopes=(),
        email=None,
        base_url="https://canvas.example.edu",
        metadata={"course_count": 4},
        version=1,
        created_at=now,
        updated_at=now,
        last_refreshed=now,
    )
