"""The event loop of a serving process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, cast

import uvloop

if TYPE_CHECKING:
    import asyncio

HANDSHAKE_SECONDS: Final = 5.0


class ServingLoop(uvloop.Loop):
    """uvloop, with five seconds for a TLS handshake instead of sixty.

    A connection belongs to the HTTP protocol only after its handshake, so nothing else bounds it before.
    """

    async def create_server(self, *arguments: Any, **options: Any) -> asyncio.Server:  # noqa: ANN401
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", HANDSHAKE_SECONDS)
        server = await super().create_server(*arguments, **options)
        return cast("asyncio.Server", server)
