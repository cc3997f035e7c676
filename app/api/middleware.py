"""ASGI middlewares, outermost first: `RequestContext`, `RequestSpans` if tracing is on, `Admission`."""

from __future__ import annotations

import re
import time
from random import getrandbits
from typing import TYPE_CHECKING, Final

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response
from app.callers.rate_limits import RequestLimits
from app.errors import InternalError, Overloaded
from app.observability.metrics.labels import METHODS, SHED, one_of
from app.observability.metrics.requests import RequestMetrics
from app.observability.request_log import CLIENT_LEFT, RequestLog, RequestRecord, current_request
from app.server.security_headers import DOCS_PATH, OVER_TLS, SECURITY_HEADERS, of_docs_page

if TYPE_CHECKING:  # imports OpenTelemetry
    from app.observability.tracing import Tracing

_log = structlog.get_logger("app.requests")
_NO_STORE = ((b"cache-control", b"no-store"),)
_VALID_REQUEST_ID = re.compile(rb"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_UNCACHED: Final = ("/v1", "/oauth")
_INTERNAL_ERROR: Final = 500
# The first three report an overload, so they answer during one. The others need no key and are objects in memory:
# callers that do not read it must not hold the places of others.
_NEVER_SHED: Final = frozenset(
    {"/healthz", "/readyz", "/metrics", "/openapi.json", DOCS_PATH, f"{DOCS_PATH}/style.css"}
)


class RequestContext:
    """Give every request an id, the common headers, an answer to unexpected exceptions, a log line and a count.

    Unexpected exceptions are handled here because Starlette's own handler logs the exception's text, which may hold a
    secret; this one logs the traceback alone and answers with the problem `internal`.
    """

    def __init__(self, app: ASGIApp, *, metrics: RequestMetrics | None = None) -> None:
        self._app = app
        self._metrics = metrics
        self._request_log = RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = RequestRecord(_request_id(scope["headers"]))
        scope.setdefault("state", {})["request_id"] = record.request_id
        started, status, has_ended = time.perf_counter(), CLIENT_LEFT, False
        common_headers = (*_headers_for(scope), (b"x-request-id", record.request_id.encode()))

        def end() -> None:
            nonlocal has_ended
            has_ended = True
            self._end(scope, record, status, time.perf_counter() - started)

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message["headers"], *common_headers]  # no route sets any of these itself
            elif not message.get("more_body") and not has_ended:
                end()  # before the last byte, so the line is queued when the caller has the answer
            await send(message)

        if self._metrics is not None:
            self._metrics.began()
        outer = current_request.set(record)
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:  # noqa: BLE001  the outermost handler
            _log.error("internal_error", request_id=record.request_id, exc_info=error)
            record.failed(InternalError.code, None)  # also if an answer has been started
            if status == CLIENT_LEFT:
                failure = InternalError("an unexpected error; the log of the vault has it under the request id")
                await problem_response(failure, record.request_id)(scope, receive, send_with_headers)
        finally:
            current_request.reset(outer)
            if not has_ended:
                end()

    def _end(self, scope: Scope, record: RequestRecord, status: int, seconds: float) -> None:
        if self._metrics is not None:
            route = SHED if record.outcome == Overloaded.code else getattr(scope.get("route"), "path", None)
            self._metrics.ended(route, scope["method"], status, seconds)
            self._metrics.refusals.answered(record.outcome)
        self._request_log.write(record, scope, status, seconds)


def _headers_for(scope: Scope) -> tuple[tuple[bytes, bytes], ...]:
    headers = OVER_TLS if scope["scheme"] == "https" else SECURITY_HEADERS
    path = scope["path"]
    if path.startswith(_UNCACHED):
        return (*headers, *_NO_STORE)
    return of_docs_page(headers) if path.startswith(DOCS_PATH) else headers


def _request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """Return the caller's X-Request-ID if it is valid, else a new id."""
    for name, value in headers:
        if name == b"x-request-id" and _VALID_REQUEST_ID.fullmatch(value):
            return value.decode("ascii")
    return f"{getrandbits(128):032x}"  # a name and no secret: the secure generator calls the system


class RequestSpans:
    """Record one span for each request."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = current_request.get()
        status = CLIENT_LEFT

        async def send_and_note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._tracing.request(one_of(METHODS, scope["method"]), _traceparent(scope["headers"])) as span:
            if record is not None:
                record.trace_id = span.trace_id
            try:
                await self._app(scope, receive, send_and_note_status)
            except Exception:
                status = _INTERNAL_ERROR
                raise
            finally:
                outcome = record.outcome if record is not None else None
                span.answered(
                    getattr(scope.get("route"), "path", None),
                    status,
                    service=scope["state"].get("service"),
                    error=(outcome or "internal") if status >= _INTERNAL_ERROR else None,
                )


def _traceparent(headers: list[tuple[bytes, bytes]]) -> str | None:
    values = [value for name, value in headers if name == b"traceparent"]
    return values[0].decode("latin-1") if len(values) == 1 else None


class Admission:
    """Admit a request or answer 503 at once, and count it until its answer has left the process.

    Requests beyond the capacity would delay all others and miss their own deadline. The admitted request is left in
    the state, where authentication charges it to the calling service. `app.server.http_limits` lets no part of an
    answer return from `send` before it has been taken by the network.
    """

    def __init__(self, app: ASGIApp, *, limits: RequestLimits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _NEVER_SHED:
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
