"""Shutdown: callers are sent away, new connections refused, requests in flight finished, and the exit code is 0."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.storing_client import StoringClient, secret_of
from tests.support.process.wire import ANSWER_SECONDS, Wire, token_path, wires
from tests.support.process.workers import workers_of
from tests.support.stack.loopback import LOOPBACK
from tests.support.waiting import eventually

CLIENTS = 16
ENDLESS_SECONDS = "600"
ACKNOWLEDGED = 150


def _begin_put(server: Server, path: str, body: bytes) -> socket.socket:
    """Send a PUT up to the middle of its body, once the vault waits for the body."""
    connection = socket.create_connection((LOOPBACK, server.port), timeout=ANSWER_SECONDS)
    head = (
        f"PUT {path} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {server.home.service_key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    connection.sendall(head.encode())
    assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
    connection.sendall(body[: len(body) // 2])
    return connection


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load(tmp_path: Path, serve: Serve, workers: int) -> None:
    home = new_home(tmp_path)
    unfinished, body = token_path(uuid4()), json.dumps({"access_token": "in flight"}).encode()
    with serve(home, workers=workers, installed=workers == 1) as server:
        clients = [StoringClient(server) for _ in range(CLIENTS)]
        try:
            eventually(lambda: sum(client.acknowledgements for client in clients) > ACKNOWLEDGED, within_seconds=120)
            with closing(_begin_put(server, unfinished, body)) as connection:
                server.terminate()
                eventually(lambda: "Shutting down" in server.output, within_seconds=120)
                if workers == 1:  # of several, the supervisor keeps the socket until the workers have ended
                    assert server.refuses_connections()
                assert server.is_running(), "a request is in flight"
                connection.sendall(body[len(body) // 2 :])
                answer = b""
                while chunk := connection.recv(65536):
                    answer += chunk
            ended = server.ended()
        finally:
            server.kill()
            for client in clients:
                client.join()
    assert answer.startswith(b"HTTP/1.1 201 ")
    assert ended.exit_code == 0
    assert "Traceback" not in ended.output
    assert [status for client in clients for status in client.unexpected] == []
    acknowledged = {user_id: version for client in clients for user_id, version in client.acknowledged.items()}
    with serve(home) as server, wires(server, 1) as (wire,):
        assert wire.call("GET", unfinished).body["access_token"] == "in flight"
        for user_id, version in acknowledged.items():
            stored = wire.call("GET", token_path(user_id))
            assert stored.status == 200, json.dumps(stored.body)
            expected = {secret_of(user_id, version), secret_of(user_id, version + 1)}
            assert stored.body["access_token"] in expected, "the answer to the next write may be lost"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_idle_server_exits_with_0_although_callers_stay_connected(
    tmp_path: Path, serve: Serve, number: signal.Signals
) -> None:
    with serve(new_home(tmp_path), installed=True) as server, closing(Wire(server)) as wire:
        assert wire.call("GET", "/healthz").status == 200
        server.process.send_signal(number)
        ended = server.ended()
        assert ended.exit_code == 0
        assert "Traceback" not in ended.output
        assert "Waiting for connections to close" not in ended.output
        assert server.refuses_connections()


def test_a_worker_that_dies_is_replaced_and_the_others_exit_with_0(tmp_path: Path, serve: Serve) -> None:
    path = token_path(uuid4())
    with serve(new_home(tmp_path), workers=2, installed=True) as server:
        with server.client() as client:
            assert client.put(path, json={"access_token": "kept"}).status_code == 201
        before = workers_of(server)
        os.kill(min(before), signal.SIGKILL)
        server.wait_until_up(workers=3)
        after = workers_of(server)
        with closing(Wire(server)) as wire:  # stays connected
            assert wire.call("GET", path).body["access_token"] == "kept"
            assert server.stop().exit_code == 0
        assert server.refuses_connections()
    assert (len(before), len(after), len(before & after)) == (2, 2, 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_draining_vault_serves_sends_callers_away_and_is_not_ready(
    tmp_path: Path, serve: Serve, workers: int
) -> None:
    path = token_path(uuid4())
    with serve(new_home(tmp_path, SHUTDOWN_DRAIN_SECONDS=ENDLESS_SECONDS), workers=workers) as server:
        with server.client() as client:
            kept = client.put(path, json={"access_token": "kept"})
            assert "connection" not in kept.headers
            server.terminate()

            def statuses() -> set[tuple[int, str]]:
                answers = [client.get("/readyz", headers={"Connection": "close"}) for _ in range(8)]
                return {(answer.status_code, answer.json()["status"]) for answer in answers}

            eventually(lambda: statuses() == {(503, "stopping")})
            server.terminate()  # as a service manager does, besides the supervisor of workers
            for method, status in (("GET", 200), ("DELETE", 204), ("GET", 404)):
                answer = client.request(method, path)
                assert (answer.status_code, answer.headers["connection"]) == (status, "close")
        assert server.is_running()
        if workers == 1:  # the supervisor of several waits for them
            server.process.send_signal(signal.SIGINT)
            assert server.ended().exit_code == 0
