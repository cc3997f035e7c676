"""The baseline of the PostgreSQL store: asyncpg behind a FastAPI route that authenticates and returns a row.

Run as `python -m benchmarks.asyncpg_app PORT WORKERS` with `DATABASE_URL` and `CALLER_KEY` in the environment.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import asyncpg
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException
from starlette.responses import Response

from benchmarks.load import LOOPBACK

_ROW = (
    "select row_to_json(t)::text from public.oauth_tokens t "
    "where user_id = $1 and provider = $2 and service_type = 'default'"
)
_POOL = 10  # as DATABASE_POOL_SIZE


def create_app() -> FastAPI:
    expected = hashlib.sha256(os.environ["CALLER_KEY"].encode()).digest()
    pools: list[asyncpg.Pool] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pools.append(await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=_POOL, max_size=_POOL))
        yield
        await pools[0].close()

    async def authenticated(authorization: Annotated[str, Header()]) -> None:
        presented = hashlib.sha256(authorization.removeprefix("Bearer ").encode()).digest()
        if not hmac.compare_digest(presented, expected):
            raise HTTPException(401)

    app = FastAPI(lifespan=lifespan, openapi_url=None)

    @app.get("/v1/users/{user_id}/tokens/{provider}", dependencies=[Depends(authenticated)])
    async def row(user_id: str, provider: str) -> Response:
        found = await pools[0].fetchval(_ROW, user_id, provider)
        if found is None:
            raise HTTPException(404)
        return Response(found, media_type="application/json")

    @app.get("/healthz")
    async def healthz() -> Response:
        return Response()

    return app


if __name__ == "__main__":
    uvicorn.run(
        "benchmarks.asyncpg_app:create_app",
        factory=True,
        host=LOOPBACK,
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        access_log=False,
        log_level="info",  # says when each worker has started
    )
