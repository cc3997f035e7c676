"""Callers that do not read their answers cost a bounded amount of memory."""

from __future__ import annotations

import json
import socket
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from benchmarks.servers import resident_bytes
from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Wire, token_path
from tests.support.stack.loopback import LOOPBACK
from tests.support.waiting import eventually

LARGE = "s" * 16_384
TOKENS, CALLERS = 90, 40
MOST_BYTES = 60_000_000
ROUTE = '"route":"/v1/tokens/batch-get"'


def test_forty_unread_batches_take_little_memory(tmp_path: Path, serve: Serve) -> None:
    """A batch of 90 large tokens would be an answer of 5 MB."""
    user = str(uuid4())
    asked = [{"user_id": user, "provider": "canvas", "service_type": f"s{number}"} for number in range(TOKENS)]
    batch = json.dumps({"tokens": asked, "include": "refresh_token"}).encode()
    with serve(new_home(tmp_path)) as server, ExitStack() as opened:
        wire = Wire(server)
        opened.callback(wire.close)
        for one in asked:
            body = {"access_token": LARGE, "refresh_token": LARGE, "scopes": ["x" * 500] * 40}
            assert wire.call("PUT", f"{token_path(user)}?service_type={one['service_type']}", body).status == 201
        assert wire.call("POST", "/v1/tokens/batch-get", json.loads(batch)).status == 200
        before = resident_bytes(server.pid)
        for _ in range(CALLERS):
            opened.callback(_send(server, batch).close)
        eventually(lambda: server.output.count(ROUTE) == CALLERS + 1)
        assert resident_bytes(server.pid) - before < MOST_BYTES
        assert wire.call("GET", f"{token_path(user)}?service_type=s0").status == 200


def _send(server: Server, body: bytes) -> socket.socket:
    """Send a batch from a caller with a small buffer that does not read."""
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    caller.connect((LOOPBACK, server.port))
    head = (
        f"POST /v1/tokens/batch-get HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {server.home.service_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    caller.sendall(head.encode() + body)
    return caller
