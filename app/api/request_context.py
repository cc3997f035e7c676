"""What every request gets: an id, the headers that all answers carry, an answer even to a defect, and its record."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING
from uuid import uuid4

import structlog

from app.api.problems import problem_response
from app.api.security_headers import OVER_TLS, SECURITY_HEADERS
from app.errors import InternalError, Overloaded
from app.observability.metrics.labels import SHED
from app.observability.request_log import CLIENT_LEFT, RequestLog, RequestRecord, current_request

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from app.observability.metrics.requests import RequestMetrics

_log = structlog.get_logger("app.requests")
_NEVER_STORED = ((b"cache-control", b"no-store"),)
_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class RequestContext:
    """Outermost ASGI middleware.

    Starlette's own last resort logs the text of whatever was raised; this one logs where it came from and answers
    with the problem `internal`. When a request ends it is logged and counted by its route's template.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._requests = RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = record.request_id
        began, status, over = time.perf_counter(), CLIENT_LEFT, False
        identified = (*_headers_for(scope), (b"x-request-id", record.request_id.encode()))

        def end() -> None:
            nonlocal over
            over = True
            self._ended(scope, record, status, time.perf_counter() - began)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                # appended: no route of ours sets any of these
                message["headers"] = [*message["headers"], *identified]
            elif not message.get("more_body") and not over:
                end()  # before the caller knows: its line is queued, and is written within a moment
            await send(message)

        if self._metrics is not None:
            self._metrics.began()
        outer = current_request.set(record)
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  the last resort
            _log.error("internal_error", request_id=record.request_id, exc_info=error)
            record.failed(InternalError.code, None)  # whatever may have been begun
            if status == CLIENT_LEFT:
                failure = InternalError("the vault made a mistake; its log has the request id")
                await problem_response(failure, record.request_id)(scope, receive, send_with_headers)
        finally:
            current_request.reset(outer)
            if not over:
                end()

    def _ended(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        if self._metrics is not None:
            route = SHED if record.outcome == Overloaded.code else getattr(scope.get("route"), "path", None)
            self._metrics.ended(route, scope["method"], status, seconds)
            self._metrics.refusals.answered(record.outcome)
        self._requests.write(record, scope, status, seconds)


def _headers_for(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    common = OVER_TLS if scope["scheme"] == "https" else SECURITY_HEADERS
    return (*common, *_NEVER_STORED) if scope["path"].startswith("/v1") else common


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    for name, value in headers:
        if name == b"x-request-id" and _SANE_REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return uuid4().hex
