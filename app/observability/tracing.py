"""Spans for OpenTelemetry: a request, and below it what it asks of the store and of KMS.

Imported only where OTEL_TRACES is true, for it needs the extra `otel`. The provider is ours and not the process's, so
no library's instrumentation exports anything through it. A span has the attributes that stand here and no others, an
error is its code, and no exception's text is recorded. Of a caller's headers `traceparent` is read, which has a strict
form, and neither `tracestate` nor baggage, which may hold anything.
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

if TYPE_CHECKING:
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
    """Makes the spans, and hands them to `processor` when they end; without one, to the collector that OTEL_* names."""

    def __init__(self, *, processor: SpanProcessor | None = None) -> None:
        ours = Resource({"service.name": "token-vault", "service.version": version("pulseplan-token-vault")})
        # shutdown_on_exit would wait for a collector that is gone, past every bound of ours
        self._provider = TracerProvider(resource=ours.merge(OTELResourceDetector().detect()), shutdown_on_exit=False)
        self._provider.add_span_processor(processor or BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("app")
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def request(self, method: str, traceparent: str | None) -> Iterator[RequestSpan]:
        """Be the current span while a request is answered; a child of the caller's, where it named one."""
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
        """Await a call to the store in a span of its own; a `StoreObserver`."""
        with self._client_span(f"store {operation}", {"db.operation.name": operation}):
            return await call

    @contextmanager
    def kms_call(self, operation: str) -> Iterator[None]:
        """Be the current span while KMS is asked; a `KmsWatch`."""
        with self._client_span(f"KMS {operation}", {"rpc.service": "KMS", "rpc.method": operation}):
            yield

    async def close(self) -> None:
        """Send what is left, for a few seconds at most."""
        # no pool's thread, which the interpreter would wait for
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
    """The span of a request whose route is not known before it has been answered."""

    def __init__(self, span: Span, method: str) -> None:
        self._span = span
        self._method = method

    @property
    def trace_id(self) -> str:
        return format_trace_id(self._span.get_span_context().trace_id)

    def answered(self, route: str | None, status: int, *, service: str | None, error: str | None) -> None:
        """Say what it was; `error` is a code."""
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
    """Leave out every attribute that does not stand in the list."""
    return {name: value for name, value in attributes.items() if name in ALLOWED_ATTRIBUTES}
