"""Traces: the spans, and no data of a caller in them."""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, SpanKind, StatusCode

from app.observability.tracing import Tracing
from tests.support.api.service import running_service
from tests.support.observability.application import running_application
from tests.support.process.home import run
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.kms import Kms
from tests.support.stores.stores import SqliteStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
ROUTE = "/v1/users/{user_id}/tokens/{provider}"
CANARY = "CANARYz9x8SECRETw7v6TOKEN"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"


@asynccontextmanager
async def _traced(folder: Path, **settings: str) -> AsyncIterator[tuple[httpx.AsyncClient, InMemorySpanExporter]]:
    """Run the application in this process, with the spans that have ended."""
    exporter = InMemorySpanExporter()
    tracing = Tracing(processor=SimpleSpanProcessor(exporter))
    async with running_application(folder, tracing=tracing, **settings) as client:
        exporter.clear()
        yield client, exporter


def _of_requests(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """Return the spans that have ended, without those of the background work after a start."""
    spans = exporter.get_finished_spans()
    return [span for span in spans if span.kind is SpanKind.SERVER or span.parent is not None]


def _context(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def _exported(spans: Iterable[ReadableSpan]) -> str:
    """Return everything that an exporter can send."""
    return " ".join(span.to_json() + repr(_context(span)) for span in spans)


async def test_a_request_span_has_its_route_and_child_spans_of_the_store(tmp_path: Path) -> None:
    async with _traced(tmp_path) as (client, exporter):
        await client.put(CANVAS, json={"access_token": CANARY})
        *below, request = _of_requests(exporter)
    assert request.name == f"PUT {ROUTE}"
    assert request.parent is None
    assert dict(request.attributes or {}) == {
        "http.request.method": "PUT",
        "http.route": ROUTE,
        "http.response.status_code": 201,
        "vault.service": "tests",
    }
    assert [span.name for span in below] == ["store get", "store insert"]
    assert {span.parent.span_id for span in below if span.parent} == {_context(request).span_id}


async def test_only_traceparent_is_read_from_a_callers_headers(tmp_path: Path) -> None:
    headers = {
        "traceparent": f"00-{TRACE}-{PARENT}-01",
        "tracestate": f"vendor={CANARY}",
        "baggage": f"token={CANARY}",
        "X-Other": CANARY,
    }
    async with _traced(tmp_path) as (client, exporter):
        await client.get(CANVAS, headers=headers)
        spans = _of_requests(exporter)
        exporter.clear()
        await client.get(CANVAS, headers={"traceparent": CANARY})
        [*_, alone] = _of_requests(exporter)
    assert {f"{_context(span).trace_id:032x}" for span in spans} == {TRACE}
    assert spans[-1].parent is not None
    assert f"{spans[-1].parent.span_id:016x}" == PARENT
    assert CANARY not in _exported(spans)
    assert alone.parent is None, "a malformed traceparent is ignored"


async def test_no_span_contains_body_path_query_or_headers(tmp_path: Path) -> None:
    async with _traced(tmp_path) as (client, exporter):
        await client.put(CANVAS, json={"access_token": CANARY, "refresh_token": CANARY, "metadata": {"a": CANARY}})
        await client.get(CANVAS, params={"include": "refresh_token"})
        await client.get(f"/v1/users/{CANARY}/tokens/{CANARY}", params={"service_type": CANARY})
        await client.get(f"/{CANARY}", headers={"Authorization": f"Bearer {CANARY}", "User-Agent": CANARY})
        await client.put(CANVAS, content=f'{{"access_token": "{CANARY}', headers={"Content-Type": "application/json"})
        await client.request(CANARY, CANVAS)
        spans = _of_requests(exporter)
    assert len([span for span in spans if span.name.startswith(("GET", "PUT", "other"))]) == 6
    exported = _exported(spans)
    for hidden in (CANARY, USER, MASTER_KEY, str(tmp_path)):
        assert hidden not in exported
    assert [event for span in spans for event in span.events] == [], "no exception is recorded"


async def test_a_failed_span_has_the_errors_code(tmp_path: Path) -> None:
    nobody = {"TOKEN_STORE": "supabase", "SUPABASE_URL": "http://127.0.0.1:1", "SUPABASE_SERVICE_KEY": "key"}
    async with _traced(tmp_path, **nobody) as (client, exporter):
        assert (await client.get(CANVAS)).status_code == 503
        spans = [span for span in _of_requests(exporter) if span.name in {"store get", f"GET {ROUTE}"}]
    assert len(spans) == 2
    for span in spans:
        assert span.status.status_code is StatusCode.ERROR
        assert (span.attributes or {})["error.type"] == "store_unavailable"
        assert span.status.description is None
        assert list(span.events) == []


async def test_a_defect_leaves_the_code_internal_without_its_text() -> None:
    exporter = InMemorySpanExporter()
    tracing = Tracing(processor=SimpleSpanProcessor(exporter))

    async def broken() -> None:
        raise ValueError(CANARY)

    with pytest.raises(ValueError, match=CANARY):
        await tracing.store_call("get", broken())
    [span] = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"db.operation.name": "get", "error.type": "internal"}
    assert CANARY not in _exported((span,))


async def test_a_kms_request_in_a_thread_is_a_child_of_the_request_span(kms: Kms, tmp_path: Path) -> None:
    async with _traced(tmp_path, **kms.environment()) as (client, exporter):
        assert (await client.put(CANVAS, json={"access_token": CANARY})).status_code == 201
        spans = {span.name: span for span in exporter.get_finished_spans()}
    asked, request = spans["KMS GenerateDataKey"], spans[f"PUT {ROUTE}"]
    assert asked.parent is not None
    assert asked.parent.span_id == _context(request).span_id
    assert dict(asked.attributes or {}) == {"rpc.service": "KMS", "rpc.method": "GenerateDataKey"}
    assert "arn:" not in _exported(tuple(spans.values()))


class _Collector(BaseHTTPRequestHandler):
    """A collector for OTLP over HTTP; its server has the attribute `received`."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append(body)  # type: ignore[attr-defined]  # a test's own attribute of http.server's object
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@contextmanager
def _collector() -> Iterator[tuple[str, list[bytes]]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Collector)
    received: list[bytes] = []
    server.received = received  # type: ignore[attr-defined]  # a test's own attribute of http.server's object
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _spans_of(received: list[bytes]) -> list[Any]:
    requests = [ExportTraceServiceRequest.FromString(body) for body in received]
    return [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_spans_reach_the_collector_that_the_environment_names(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    with _collector() as (url, received):
        settings = {**store.environment(), "OTEL_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        with running_service(tmp_path, settings) as vault:
            with vault.logged() as lines, vault.client() as client:
                client.put(CANVAS, json={"access_token": CANARY}, headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
            assert [line["trace_id"] for line in lines] == [TRACE], "the log leads to the trace"
        spans = _spans_of(received)  # SIGTERM sends what is left
    assert {f"PUT {ROUTE}", "store insert", "GET /healthz"} <= {span.name for span in spans}
    sent = b" ".join(received)
    assert b"token-vault" in sent
    assert CANARY.encode() not in sent
    assert USER.encode() not in sent


def test_pipelined_requests_are_traced_apart(tmp_path: Path) -> None:
    """A pipelined request starts within the one before it, whose span must not become its parent."""
    settings = {
        **SqliteStore(tmp_path / "vault.db").environment(),
        "OTEL_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    }
    request = b"GET /v1/nothing HTTP/1.1\r\nHost: vault\r\n"
    with running_service(tmp_path, settings) as vault:
        address = ("127.0.0.1", int(vault.url.rpartition(":")[2]))
        with vault.logged() as lines, socket.create_connection(address, timeout=60) as caller:
            caller.sendall(2 * (request + b"\r\n") + request + b"Connection: close\r\n\r\n")
            while caller.recv(4096):
                pass
    traces = [line["trace_id"] for line in lines]
    assert len(set(traces)) == len(traces) == 3


def test_a_lost_collector_delays_neither_calls_nor_the_end(tmp_path: Path) -> None:
    settings = {
        **SqliteStore(tmp_path / "vault.db").environment(),
        "OTEL_TRACES": "true",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1",
    }
    with running_service(tmp_path, settings) as vault, vault.client() as client:
        assert client.put(CANVAS, json={"access_token": CANARY}).status_code == 201
        vault.process.terminate()
        assert vault.process.wait(60) == 0
    lines = [json.loads(line) for line in vault.log.read_text().splitlines()]
    assert lines[-1]["event"] != "failed"
    assert CANARY not in vault.log.read_text()


def test_without_the_extra_the_start_fails_with_one_line(tmp_path: Path) -> None:
    program = """
import sys
sys.modules["opentelemetry.sdk"] = None  # as if it were not installed
from app.cli import main
main(["serve"])
"""
    settings = {"TOKEN_ENCRYPTION_KEY": MASTER_KEY, "OTEL_TRACES": "true", "PORT": "0"}
    done = run(sys.executable, "-c", program, folder=tmp_path, settings=settings)
    assert done.returncode == 2
    [line] = (done.stdout + done.stderr).splitlines()
    assert "pulseplan-token-vault[otel]" in line
