"""Request id, record, spans, and admission limits around every request."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Final
from uuid import uuid4

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.problems import problem_response
from app.callers.rate_limits import Limits
from app.errors import InternalError, Overloaded
from app.observability.metrics.labels import METHODS, SHED, one_of
from app.observability.metrics.requests import RequestMetrics
from app.observability.request_log import CLIENT_LEFT, RequestLog, RequestRecord, current_request
from app.server.security_headers import OVER_TLS, SECURITY_HEADERS

if TYPE_CHECKING:
    from app.observability.tracing import Tracing


# --- What every request gets: an id, the headers that all answers carry, an answer even to a defect, and its record.

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


# --- A span for each request, where tracing is on.

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


# --- Whether a request is taken on at all, and that it gives its place back.
# Work that is accepted beyond what can be done in time makes everyone late and is thrown away at its deadline, so past
# a bound the answer is an immediate 503.

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
