"""The second listener, METRICS_PORT: what needs no service key, apart from the port that callers reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from starlette.routing import BaseRoute, Match, Router
from starlette.types import Receive, Scope, Send


class MetricsListener(BaseRoute):
    """Match every request on one port, and answer it by these routes alone.

    Put it first, so that no other route answers on that port. The port is that of the accepted connection, which no
    header changes.
    """

    methods: ClassVar[frozenset[str]] = frozenset({"GET"})  # for the header Allow

    def __init__(self, *, port: int, routes: Sequence[BaseRoute]) -> None:
        self._port = port
        self._router = Router(routes=routes, redirect_slashes=False)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        server = scope.get("server")
        is_here = scope["type"] == "http" and server is not None and server[1] == self._port
        return (Match.FULL if is_here else Match.NONE), {}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._router.app(scope, receive, send)
