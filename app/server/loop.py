"""The event loop of a serving process."""

from __future__ import annotations

import asyncio
import ssl as tls
from collections.abc import Callable
from typing import Any, cast

import uvloop

from app.server.handshake import Handshake
from app.server.http_limits import LimitedHttp


class ServingLoop(uvloop.Loop):
    """uvloop, whose servers count TLS connections from their first byte and give them five seconds to shake hands."""

    async def create_server(  # type: ignore[override]  # what uvicorn passes, and the rest as it is
        self,
        protocol_factory: Callable[[], LimitedHttp],
        *arguments: Any,  # noqa: ANN401  uvloop's own
        ssl: tls.SSLContext | None = None,
        **options: Any,  # noqa: ANN401  uvloop's own
    ) -> asyncio.Server:
        factory: Callable[[], Any] = protocol_factory
        if ssl is not None:
            context, underway = ssl, set[Handshake]()

            def factory() -> Handshake:
                return Handshake(loop=self, http=protocol_factory(), context=context, underway=underway)

        server = await super().create_server(factory, *arguments, **options)
        return cast("asyncio.Server", server)
