"""The baseline of a reveal on Supabase: the untuned library behind a route that checks and decrypts nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from supabase import AsyncClient, acreate_client

from benchmarks.load import LOOPBACK


def create_app() -> FastAPI:
    clients: list[AsyncClient] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        clients.append(await acreate_client(os.environ["SUPABASE_URL"], os.environ["SUPABASE_SERVICE_KEY"]))
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/v1/users/{user_id}/tokens/{provider}")
    async def row(user_id: str, provider: str) -> JSONResponse:
        answer = await (
            clients[0]
            .table("oauth_tokens")
            .select("*")
            .eq("user_id", user_id)
            .eq("provider", provider)
            .eq("service_type", "default")
            .execute()
        )
        return JSONResponse(answer.data)

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        return JSONResponse({})

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(), host=LOOPBACK, port=int(sys.argv[1]), access_log=False, log_level="warning")
