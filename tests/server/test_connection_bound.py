"""The bound on connections of a real server: 1 000."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from app.server.http_limits import HttpLimits
from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import ANSWER_SECONDS, Wire
from tests.support.stack.loopback import LOOPBACK

NEWCOMERS = 15
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: vault\r\n\r\n"


def _connect(server: Server, opened: ExitStack) -> socket.socket:
    return opened.enter_context(socket.create_connection((LOOPBACK, server.port), timeout=ANSWER_SECONDS))


def test_idle_connections_do_not_keep_newcomers_out(tmp_path: Path, serve: Serve) -> None:
    with serve(new_home(tmp_path)) as server, ExitStack() as opened:
        idle = [_connect(server, opened) for _ in range(HttpLimits().connections)]
        for connection in idle:
            connection.sendall(REQUEST)
        for connection in idle:
            _read_answer(connection)
        newcomers = [Wire(server) for _ in range(NEWCOMERS)]
        for newcomer in newcomers:
            opened.callback(newcomer.close)
            assert newcomer.call("GET", "/healthz").status == 200
        for connection in idle[:NEWCOMERS]:
            assert connection.recv(1) == b"", "the longest idle ones were closed for them"
        for newcomer in newcomers:
            assert newcomer.call("GET", "/healthz").status == 200
        idle[-1].sendall(REQUEST)
        _read_answer(idle[-1])


def _read_answer(connection: socket.socket) -> None:
    """Read one answer of `/healthz`, whose body is a JSON object."""
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(4096)
    assert answer.startswith(b"HTTP/1.1 200 ")
