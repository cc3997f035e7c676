"""TLS in front of the HTTP protocol, which hears of a connection from the first byte and not only after the handshake.

A server of uvloop's own tells nobody of a connection whose handshake never ends, though it holds a descriptor.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING, Final

from uvloop.loop import SSLProtocol  # type: ignore[attr-defined]  # in no stub, but what uvloop's own servers use

if TYPE_CHECKING:
    from app.server.http_limits import LimitedHttp

HANDSHAKE_SECONDS: Final = 5.0


class Handshake(SSLProtocol):  # type: ignore[misc]  # uvloop has no stubs for it
    """One connection's TLS. Until `http` has it, it is one of those `underway`, and may be shed."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        http: LimitedHttp,
        context: ssl.SSLContext,
        underway: set[Handshake],
    ) -> None:
        super().__init__(loop, http, context, None, server_side=True, ssl_handshake_timeout=HANDSHAKE_SECONDS)
        self._http, self.underway = http, underway
        self._socket: asyncio.Transport | None = None
        self._is_shed = False
        self._begun_at = loop.time()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self._socket = transport
        self.underway.add(self)
        super().connection_made(transport)
        self._http.handshake_begun(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.underway.discard(self)
        super().connection_lost(exc)
        self._http.handshake_lost()

    @property
    def is_sheddable(self) -> bool:
        return not self._is_shed

    @property
    def worth(self) -> tuple[bool, float]:
        return False, self._begun_at

    def shed(self) -> None:
        self._is_shed = True
        if self._http.watch is not None:
            self._http.watch.refused("shed")
        if self._socket is not None:
            self._socket.abort()
