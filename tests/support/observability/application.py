"""The real application in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from starlette.types import Receive, Scope, Send

from app.callers.service_keys import Scope as KeyScope
from app.callers.service_keys import ServiceKey, generate_key, hash_key, render_key_list
from app.config.settings import Settings
from app.main import create_app
from app.observability.tracing import Tracing
from tests.support.security.keys import MASTER_KEY


@asynccontextmanager
async def running_application(
    folder: Path, *, tracing: Tracing | None = None, **settings: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Run the application on SQLite; the client has a service key of `tests` with every scope."""
    key = generate_key()
    entry = ServiceKey(service="tests", sha256=hash_key(key), scopes=frozenset(KeyScope))
    values = {
        "TOKEN_ENCRYPTION_KEY": MASTER_KEY,
        "SQLITE_PATH": str(folder / "vault.db"),
        "SERVICE_KEYS": render_key_list([entry]),
        "METRICS_CENSUS_SECONDS": "0",
        **settings,
    }
    app = create_app(
        Settings(_env_file=None, **values),  # type: ignore[call-arg, arg-type]  # pydantic-settings parses them
        tracing=tracing,
    )
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            scope["state"] = dict(state or {})
            await app(scope, receive, send)

        transport = httpx.ASGITransport(app=with_state)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://vault", headers=headers) as client:
            yield client
