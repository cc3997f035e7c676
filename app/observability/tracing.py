"""OpenTelemetry spans: each request, and below it the calls to the store and to KMS.

Imported only if OTEL_TRACES is true, because it needs the extra `otel`. The tracer provider is not the global one, so
no library's instrumentation exports through it. A span has only the attributes listed here; an error is its code,
without the exception's text. Of a caller's headers only `traceparent` is read, which has a strict form; `tracestate`
and baggage may hold anything.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, TypeVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, format_trace_id
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from app.errors import InternalError, VaultError
from app.tokens.events import CANCELLED

if TYPE_CHECKING:  # OpenTelemetry is an extra
    from opentelemetry.sdk.trace import SpanProcessor


T = TypeVar("T")
V = TypeVar("V", bound="str | int")
CLOSING_SECONDS: Final = 2.0
ALLOWED_ATTRIBUTES: Final = frozenset(
    {
        "db.operation.name",
        "error.type",
        "http.request.method",
        "http.response.status_code",
        "http.route",
        "rpc.method",
        "rpc.service",
        "vault.service",
    }
)


class Tracing:
    """Creates spans and sends them to `processor`, by default to the collector that OTEL_* names."""

    def __init__(self, *, processor: SpanProcessor | None = None) -> None:
        ours = Resource({"service.name": "token-vault", "service.version": version("pulseplan-token-vault")})
        # shutdown_on_exit waits without a bound for a collector that is gone
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("app")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, traceparent: str | None) -> Iterator[RequestSpan]:
        """Make a span current while a request is answered; a child of the caller's span if it sent one."""
        parent = self._propagator.extract({"traceparent": traceparent}) if traceparent else None
        with self._tracer.start_as_current_span(
            method,
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_allowed({"http.request.method": method}),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            yield RequestSpan(span, method)

    async def store_call(self, operation: str, call: Awaitable[T]) -> T:
        """Await a call to the store in a span; a `StoreObserver`."""
        with self._client_span(f"store {operation}", {"db.operation.name": operation}):
            return await call

    @contextmanager
    def kms_call(self, operation: str) -> Iterator[None]:
        """Make a span current during a request to KMS; a `KmsObserver`."""
        with self._client_span(f"KMS {operation}", {"rpc.service": "KMS", "rpc.method": operation}):
            yield

    async def close(self) -> None:
        """Send the remaining spans, for `CLOSING_SECONDS` at most."""
        # not a pool's thread, which the interpreter would wait for at exit
        last = threading.Thread(target=self._provider.shutdown, name="tracing", daemon=True)
        last.start()
        await asyncio.to_thread(last.join, CLOSING_SECONDS)

    @contextmanager
    def _client_span(self, name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            name,
            kind=SpanKind.CLIENT,
            attributes=_allowed(attributes),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                _fail(span, _code(error))
                raise


class RequestSpan:
    """Span of a request, completed once the route and the answer are known."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def answered(self, route: str | None, status: int, *, service: str | None, error: str | None) -> None:
        """Set the name and the attributes; `error` is a code."""
        attributes: dict[str, str | int] = {"http.response.status_code": status}
        if route is not None:
            self._span.update_name(f"{self._method} {route}")
            attributes["http.route"] = route
        if service is not None:
            attributes["vault.service"] = service
        self._span.set_attributes(_allowed(attributes))
        if error is not None:
            _fail(self._span, error)


def _fail(span: Span, code: str) -> None:
    span.set_attributes(_allowed({"error.type": code}))
    span.set_status(StatusCode.ERROR)


def _code(error: BaseException) -> str:
    if isinstance(error, VaultError):
        return error.code
    return CANCELLED if isinstance(error, asyncio.CancelledError) else InternalError.code


def _allowed(attributes: Mapping[str, V]) -> dict[str, V]:
    """Keep only the attributes in `ALLOWED_ATTRIBUTES`."""
    return {name: value for name, value in attributes.items() if name in ALLOWED_ATTRIBUTES}
