"""A collector for OTLP over HTTP that keeps each batch, and refuses some with an answer that quotes the key."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.stack.loopback import LOOPBACK

KEY_HEADER = "api-key"
_STOP_SECONDS = 5.0
_POLL_SECONDS = 0.02


class Collector(ThreadingHTTPServer):
    """`bodies` are the batches as protobuf, which holds text as UTF-8. Every third was refused."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.bodies: list[bytes] = []

    def environment(self, key: str) -> dict[str, str]:
        """Return the settings of a service that sends its spans here with this key."""
        return {
            "OTEL_TRACES": "true",
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{LOOPBACK}:{self.server_port}",
            "OTEL_EXPORTER_OTLP_HEADERS": f"{KEY_HEADER}={key}",
            "OTEL_BSP_SCHEDULE_DELAY": "500",
        }

    def span_names(self) -> set[str]:
        return {
            span.name
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body)
        refused = len(self.server.bodies) % 3 == 0
        refusal = f"no such {KEY_HEADER}: {self.headers[KEY_HEADER]}".encode() if refused else b""
        self.send_response(401 if refused else 200)
        self.send_header("Content-Length", str(len(refusal)))
        self.end_headers()
        self.wfile.write(refusal)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(_POLL_SECONDS,), name="collector")
        thread.start()
        try:
            yield collector
        finally:
            collector.shutdown()
            thread.join(_STOP_SECONDS)
