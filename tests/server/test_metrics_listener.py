"""METRICS_PORT: `/metrics` and `/openapi.json` on a listener of their own."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx
import pytest

from tests.support.observability.exposed import read
from tests.support.process.certificates import new_authority
from tests.support.process.home import new_home, require_refusal, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.wire import ANSWER_SECONDS, token_path
from tests.support.process.workers import workers_of
from tests.support.stack.loopback import LOOPBACK, PLAIN_HTTP, free_port
from tests.support.waiting import eventually

USER: Final = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
KEYLESS: Final = ("/metrics", "/openapi.json")


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def vault(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Server]:
    home = new_home(tmp_path_factory.mktemp("vault"), METRICS_PORT=str(free_port()))
    with serve(home, workers=request.param) as server:
        eventually(lambda: _is_up(server))
        yield server


def _second(server: Server) -> str:
    return f"http://{LOOPBACK}:{server.home.settings['METRICS_PORT']}"


def _send(url: str, path: str, method: str = "GET", headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.request(
        method, url + path, headers=headers, trust_env=False, timeout=ANSWER_SECONDS, verify=PLAIN_HTTP
    )


def _is_up(server: Server) -> bool:
    try:
        return _send(_second(server), "/metrics").is_success and _send(server.url, "/healthz").is_success
    except httpx.TransportError:
        return False


def _is_open(port: int) -> bool:
    try:
        socket.create_connection((LOOPBACK, port), timeout=ANSWER_SECONDS).close()
    except ConnectionRefusedError:
        return False
    return True


def _code(answer: httpx.Response) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    return answer.status_code, answer.json()["code"]


def test_the_second_port_answers_metrics_and_the_document(vault: Server) -> None:
    assert read(_send(_second(vault), "/metrics").text).value("token_vault_ready") == 1
    paths = _send(_second(vault), "/openapi.json").json()["paths"]
    assert "/v1/encryption" in paths
    assert "/metrics" not in paths, "the document is that of the API"


@pytest.mark.parametrize("path", KEYLESS)
@pytest.mark.parametrize("spelling", ["{path}", "{path}?x=1", "//{host}{path}", "{path}/"])
def test_the_api_port_no_longer_answers_them(vault: Server, path: str, spelling: str) -> None:
    host = f"{LOOPBACK}:{vault.home.settings['METRICS_PORT']}"
    answer = _send(vault.url, spelling.format(path=path, host=host), headers={"Host": host})
    assert _code(answer) == (404, "route_not_found")


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/encryption", token_path(USER), "/", "/metrics/x"])
def test_the_second_port_answers_nothing_else(vault: Server, path: str) -> None:
    headers = {"Authorization": f"Bearer {vault.home.service_key}", "Host": f"{LOOPBACK}:{vault.port}"}
    for method in ("GET", "PUT", "DELETE"):
        answer = _send(_second(vault), path, method, headers)
        assert _code(answer) == (404, "route_not_found")


def test_another_method_on_the_second_port_is_405(vault: Server) -> None:
    answer = _send(_second(vault), "/metrics", "POST")
    assert _code(answer) == (405, "method_not_allowed")
    assert answer.headers["allow"] == "GET"


def test_a_scrape_shows_the_requests_of_every_worker(vault: Server) -> None:
    for _ in range(20):  # each over a new connection, which any worker accepts
        with vault.client() as client:
            client.put(token_path(uuid4()), json={"access_token": "x"})
    for _ in range(4):
        seen = read(_send(_second(vault), "/metrics").text)
        stored = seen.value(
            "token_vault_token_operations_total", operation="store", provider="canvas", outcome="success"
        )
        assert stored == 20
        assert seen.value("token_vault_requests_total", route="/metrics", method="GET", status="200") >= 1


def test_metrics_are_answered_while_a_worker_lives(tmp_path: Path, serve: Serve) -> None:
    home = new_home(tmp_path, METRICS_PORT=str(free_port()))
    with serve(home, workers=2) as server:
        eventually(lambda: _is_up(server))
        os.kill(min(workers_of(server)), signal.SIGKILL)
        eventually(lambda: _is_up(server))
        assert server.stop().exit_code == 0


def test_the_second_port_has_the_tls_of_the_first(tmp_path: Path, serve: Serve) -> None:
    servers, clients = new_authority(tmp_path, "servers"), new_authority(tmp_path, "clients")
    certificate, key = servers.issue(tmp_path, "vault")
    tls = {"TLS_CERT_FILE": str(certificate), "TLS_KEY_FILE": str(key), "TLS_CLIENT_CA_FILE": str(clients.file)}
    port = free_port()
    context = ssl.create_default_context(cafile=str(servers.file))

    def status() -> int:
        connection = HTTPSConnection(LOOPBACK, port, timeout=ANSWER_SECONDS, context=context)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().status
        finally:
            connection.close()

    with serve(new_home(tmp_path, METRICS_PORT=str(port), **tls)):
        eventually(lambda: _is_open(port))
        with pytest.raises(OSError, match=r"(?i)certificate required|handshake|eof|reset|closed"):
            status()
        context.load_cert_chain(*clients.issue(tmp_path, "prometheus"))
        assert status() == 200


@pytest.mark.parametrize("options", [(), ("--port", "18099")])
def test_one_port_for_both_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    port = "18099" if options else "18098"
    home = new_home(tmp_path, PORT="18098", METRICS_PORT=port)
    require_refusal(token_vault("serve", *options, folder=tmp_path, settings=home.settings), 2, "METRICS_PORT")


@pytest.mark.parametrize(("setting", "path"), [("METRICS", "/metrics"), ("API_DOCS", "/openapi.json")])
def test_each_can_be_switched_off(tmp_path: Path, serve: Serve, setting: str, path: str) -> None:
    home = new_home(tmp_path, METRICS_PORT=str(free_port()), **{setting: "false"})
    with serve(home) as server:
        eventually(lambda: _is_open(int(home.settings["METRICS_PORT"])))
        answers = {each: _send(_second(server), each) for each in KEYLESS}
        assert _code(answers.pop(path)) == (404, "route_not_found")
        assert [answer.status_code for answer in answers.values()] == [200]
