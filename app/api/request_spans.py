"""A span for each request, where tracing is on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.observability.metrics.labels import METHODS, one_of
from app.observability.request_log import CLIENT_LEFT, current_request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.observability.tracing import Tracing

_ERROR = 500


class RequestSpans:
    """ASGI middleware, inside of `RequestContext`."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = current_request.get()
        status = CLIENT_LEFT

        async def send_and_see(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.request(one_of(METHODS, scope["method"]), _traceparent(scope["headers"])) as span:
            if record is not None:
                record.trace_id = span.trace_id
            try:
                await self._app(scope, receive, send_and_see)
            except Exception:
                status = _ERROR
                raise
            finally:
                error = record.outcome if record is not None else None
                span.answered(
                    getattr(scope.get("route"), "path", None),
                    status,
                    service=scope["state"].get("service"),
                    error=(error or "internal") if status >= _ERROR else None,
                )


def _traceparent(headers: list[tuple[bytes, bytes]]) -> str | None:
    found = [value for name, value in headers if name == b"traceparent"]
    return found[0].decode("latin-1") if len(found) == 1 else None
