"""Whether a request is taken on at all, and that it gives its place back.

Work that is accepted beyond what can be done in time makes everyone late and is thrown away at its deadline, so past
a bound the answer is an immediate 503.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from app.api.problems import problem_response
from app.errors import Overloaded

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from app.callers.limits import Limits

# what tells an operator that the vault is overloaded has to answer while it is
_EXEMPT: Final = frozenset({"/healthz", "/readyz", "/metrics"})


class Admission:
    """ASGI middleware below `RequestContext`. It leaves in the request's state what its authentication charges."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _EXEMPT:
            await self._app(scope, receive, send)
            return
        try:
            admitted = self._limits.admit()
        except Overloaded as error:
            await problem_response(error, scope["state"]["request_id"])(scope, receive, send)
            return
        try:
            scope["state"]["admitted"] = admitted
            await self._app(scope, receive, send)
        finally:
            admitted.close()
