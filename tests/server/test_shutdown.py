"""SIGTERM: nothing new is let in, what was let in is finished, and the exit is clean."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Wire, token_path
from tests.support.process.workers import workers_of
from tests.support.stack.loopback import LOOPBACK

PROMPTLY_SECONDS = 5.0
SLOW_CALLER_SECONDS = 1.0


def _wait_until_it_shuts_down(server: Server) -> None:
    deadline = time.monotonic() + PROMPTLY_SECONDS
    while "Shutting down" not in server.output:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _begin_put(server: Server, path: str, body: bytes) -> socket.socket:
    """Send a PUT up to the middle of its body, to a vault that says that it waits for the body."""
    connection = socket.create_connection((LOOPBACK, server.port), timeout=PROMPTLY_SECONDS)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {server.home.service_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.sendall(head.encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body[: len(body) // 2])
    return connection


@pytest.mark.parametrize("workers", [1, 2])
def test_a_request_in_flight_is_finished_and_kept(tmp_path: Path, serve: Serve, workers: int) -> None:
    home = new_home(tmp_path)
    path = token_path(uuid4())
    body = json.dumps({"access_token": "in flight"}).encode()
    with serve(home, workers=workers) as server:
        with closing(_begin_put(server, path, body)) as connection:
            server.terminate()
            _wait_until_it_shuts_down(server)
            time.sleep(SLOW_CALLER_SECONDS)
            connection.sendall(body[len(body) // 2 :])
            answer = b""
            while chunk := connection.recv(65536):  # until it closes, which keeps no connection alive any longer
                answer += chunk
        ended = server.ended()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert ended.exit_code == 0
    assert "Traceback" not in ended.output
    with serve(home) as server, server.client() as client:
        assert client.get(path).json()["access_token"] == "in flight"


def test_new_connections_are_refused_while_a_request_is_finished(tmp_path: Path, serve: Serve) -> None:
    body = json.dumps({"access_token": "in flight"}).encode()
    with serve(new_home(tmp_path)) as server, closing(_begin_put(server, token_path(uuid4()), body)) as connection:
        assert not server.refuses_connections()
        server.terminate()
        _wait_until_it_shuts_down(server)
        assert server.refuses_connections()
        assert server.is_running()
        connection.sendall(body[len(body) // 2 :])
        assert connection.recv(65536).startswith(b"HTTP/1.1 201 ")


@pytest.mark.parametrize("workers", [1, 2])
def test_an_idle_server_exits_promptly_with_0_although_clients_stay_connected(
    tmp_path: Path, serve: Serve, workers: int
) -> None:
    with serve(new_home(tmp_path), workers=workers) as server, closing(Wire(server)) as wire:
        assert wire.call("GET", "/healthz").status == 200
        began = time.monotonic()
        ended = server.stop()
        assert time.monotonic() - began < PROMPTLY_SECONDS
        assert ended.exit_code == 0
        assert server.refuses_connections()


def test_ctrl_c_is_a_clean_exit_too(tmp_path: Path, serve: Serve) -> None:
    with serve(new_home(tmp_path)) as server:
        server.process.send_signal(signal.SIGINT)
        ended = server.ended()
    assert ended.exit_code == 0
    assert "Traceback" not in ended.output


def test_a_worker_that_dies_is_replaced_and_its_tokens_stay(tmp_path: Path, serve: Serve) -> None:
    path = token_path(uuid4())
    with serve(new_home(tmp_path), workers=2) as server:
        with server.client() as client:
            assert client.put(path, json={"access_token": "kept"}).status_code == 201
        before = workers_of(server)
        os.kill(min(before), signal.SIGKILL)
        server.wait_until_up(workers=3)
        after = workers_of(server)
        with server.client() as client:
            assert client.get(path).json()["access_token"] == "kept"
    assert (len(before), len(after), len(before & after)) == (2, 2, 1)
