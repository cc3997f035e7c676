"""`token-vault serve`: its output, its files, and how it starts and stops."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.process.home import Home, new_home, new_master_key, require_refusal, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.wire import ANSWER_SECONDS, token_path
from tests.support.stack.loopback import LOOPBACK, free_port

ACCESS = "1234~the-access-token"
REFRESH = "1//the-refresh-token"
FORWARDED = "203.0.113.77"


def _leave_in_the_middle(server: Server, path: str) -> None:
    """Send something that is not HTTP, and a request whose body breaks off."""
    head = f"PUT {path} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {server.home.service_key}\r\n"
    broken_off = f'{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{"access_token": "{ACCESS}'
    for sent in (f"{ACCESS} {REFRESH}\r\n\r\n", broken_off):
        with socket.create_connection((LOOPBACK, server.port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(sent.encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass


def _make_calls(server: Server) -> None:
    """Make calls that store, reveal, rotate and delete, and calls that are refused or malformed."""
    path = token_path(uuid4())
    _leave_in_the_middle(server, path)
    body = {"access_token": ACCESS, "refresh_token": REFRESH}
    with server.client() as client:
        client.headers["X-Forwarded-For"] = FORWARDED
        answers = [
            client.put(path, json=body),
            client.get(path, params={"include": "refresh_token"}),
            client.post(f"{path}/rotate", json=body),
            client.put(path, json={"access_token": [ACCESS], ACCESS: REFRESH}),
            client.put(path, content=f'{{"access_token": "{ACCESS}', headers={"Content-Type": "application/json"}),
            client.get(path, headers={"Authorization": f"Bearer ptv_{ACCESS}"}),
            client.get(f"/v1/{ACCESS}", params={"token": REFRESH}),
            client.delete(path),
        ]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 422, 400, 401, 404, 204]
    assert [answer.headers["server"] for answer in answers if "server" in answer.headers] == []


@dataclass(frozen=True, slots=True)
class ServerOutput:
    """The output of a server from its start to its end, and the modes of its database files while it ran."""

    home: Home
    output: str
    database_files: dict[str, int]
    key_bytes: int


@pytest.fixture(scope="module", params=[("json", 2, 31), ("console", 1, 32)], ids=["json, two workers", "console"])
def printed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> ServerOutput:
    log_format, workers, key_bytes = request.param
    key = new_master_key(key_bytes)
    home = new_home(
        tmp_path_factory.mktemp("printed"), LOG_LEVEL="DEBUG", LOG_FORMAT=log_format, TOKEN_ENCRYPTION_KEY=key
    )
    with serve(home, workers=workers, installed=True) as server:
        _make_calls(server)
        files = {file.name: file.stat().st_mode & 0o777 for file in (home.folder / "data").iterdir()}
        return ServerOutput(home, server.stop().output, files, key_bytes)


def test_every_operation_is_logged(printed: ServerOutput) -> None:
    found = re.findall(r"operation\W+(?:\x1b\S+)?(store|reveal|rotate|delete)\b", printed.output)
    assert found == ["store", "reveal", "rotate", "delete"]


def test_no_secret_is_printed(printed: ServerOutput) -> None:
    settings = printed.home.settings
    for secret in (ACCESS, REFRESH, printed.home.service_key, settings["TOKEN_ENCRYPTION_KEY"]):
        assert secret not in printed.output


def test_no_traceback_is_printed(printed: ServerOutput) -> None:
    assert "Traceback" not in printed.output


def test_a_caller_cannot_forge_its_address(printed: ServerOutput) -> None:
    """By default uvicorn accepts `X-Forwarded-For` from the loopback address."""
    assert FORWARDED not in printed.output


def test_the_log_is_json_lines_or_text(printed: ServerOutput) -> None:
    lines = printed.output.splitlines()
    if printed.home.settings["LOG_FORMAT"] == "json":
        assert all({"event", "level", "timestamp"} <= json.loads(line).keys() for line in lines)
    else:
        assert not [line for line in lines if line.startswith("{")]


def test_a_line_on_the_console_begins_with_what_matters(printed: ServerOutput) -> None:
    if printed.home.settings["LOG_FORMAT"] == "json":
        return
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in printed.output.splitlines()]
    stored = next(line for line in lines if "operation=store" in line)
    assert re.match(
        r"\d\d:\d\d:\d\d\.\d{3} \[info\] request +status=201 method=PUT "
        r"route=/v1/users/\{user_id\}/tokens/\{provider\} operation=store "
        r"outcome=success provider=canvas service=tests duration_ms=[\d.]+ ",
        stored,
    ), stored
    assert re.search(r" request_id=[0-9a-f-]{8}$", stored), stored


def test_a_weak_setting_is_warned_about(printed: ServerOutput) -> None:
    assert "setting_is_weak" in printed.output
    assert "AUDIT_LOG is not set" in printed.output
    assert ("TOKEN_ENCRYPTION_KEY has less than 32 bytes" in printed.output) is (printed.key_bytes < 32)


def test_only_the_owner_may_read_the_database(printed: ServerOutput) -> None:
    assert printed.database_files == {"vault.db": 0o600, "vault.db-shm": 0o600, "vault.db-wal": 0o600}


@pytest.mark.parametrize("name", ["PORT", "METRICS_PORT"])
def test_a_port_that_is_taken_is_one_line_and_exit_code_2(tmp_path: Path, name: str) -> None:
    with socket.socket() as other:
        other.bind((LOOPBACK, 0))
        other.listen()
        port = str(other.getsockname()[1])
        done = token_vault("serve", folder=tmp_path, settings={**new_home(tmp_path).settings, name: port})
    require_refusal(done, 2, f"{name}: ", port, "Address already in use")


def test_a_remote_store_that_is_down_does_not_stop_the_start(tmp_path: Path, serve: Serve) -> None:
    nobody = f"http://{LOOPBACK}:{free_port()}"
    home = new_home(tmp_path, TOKEN_STORE="supabase", SUPABASE_URL=nobody, SUPABASE_SERVICE_KEY="key")
    with serve(home) as server, server.client() as client:
        assert client.get("/readyz").status_code == 503
        refused = client.get(token_path(uuid4()))
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert nobody not in server.stop().output
