"""The service-keys file: many may edit it, a running vault follows it, and nobody repairs it by overwriting."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.process.home import COMMAND, COMMAND_SECONDS, Home, environment, files_of, require_refusal
from tests.support.process.key_commands import (
    KEY_FILE,
    create_key,
    entries_of,
    hash_of,
    home_with_key_file,
    service_key,
    write_key_file,
)
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Wire, token_path, wires
from tests.support.process.workers import worker_of_each, workers_of

FOLLOWS_SECONDS = 5.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_key_file(tmp_path)


def test_eight_keys_created_at_once_are_all_in_the_file(home: Home) -> None:
    started = [
        subprocess.Popen(
            [COMMAND, "service-key", "create", "--service", f"service-{number}", "--scope", "tokens:read"],
            cwd=home.folder,
            env=environment(home.settings),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    keys = [process.communicate(timeout=COMMAND_SECONDS)[0].strip() for process in started]
    assert [process.returncode for process in started] == [0] * 8
    expected = {f"service-{number}": hash_of(key) for number, key in enumerate(keys)}
    assert {entry["service"]: entry["sha256"] for entry in entries_of(home)} == expected
    assert [path.name for path in (home.folder / "keys").iterdir() if path.name.endswith(".new")] == []


@pytest.mark.parametrize("content", ["[", "{}", '[{"service": "api"}]', "", "\xff"])
@pytest.mark.parametrize(
    "command",
    [
        ("create", "--service", "api", "--scope", "tokens:read"),
        ("list",),
        ("revoke", "0123456789ab"),
        ("revoke", "--service", "api"),
    ],
    ids=["create", "list", "revoke", "revoke-service"],
)
def test_a_broken_file_is_reported_and_left_as_it_is(home: Home, content: str, command: tuple[str, ...]) -> None:
    write_key_file(home, content, encoding="latin-1")
    before = files_of(home.folder)[KEY_FILE]
    require_refusal(service_key(home, *command), 2, KEY_FILE)
    assert files_of(home.folder)[KEY_FILE] == before


def test_a_file_that_is_a_directory_is_reported(home: Home) -> None:
    (home.folder / KEY_FILE).mkdir(parents=True)
    require_refusal(service_key(home, "create", "--service", "api", "--scope", "tokens:read"), 2, KEY_FILE)
    require_refusal(service_key(home, "list"), 2, KEY_FILE)


def _answers(server: Server, key: str, expected: int) -> bool:
    """Whether a key's calls are answered with this status soon enough."""
    deadline = time.monotonic() + FOLLOWS_SECONDS
    with server.client(key) as client:
        while time.monotonic() < deadline:
            if client.get(f"/v1/users/{uuid4()}/tokens").status_code == expected:
                return True
            time.sleep(0.05)
    return False


def test_a_running_vault_follows_the_file_without_a_restart(home: Home, serve: Serve) -> None:
    other = create_key(home, service="other")
    with serve(home) as server:
        assert _answers(server, other, 200)
        key = create_key(home, service="new")
        assert _answers(server, key, 200)
        service_key(home, "revoke", hash_of(key)[:12])
        assert _answers(server, key, 401)
        assert _answers(server, other, 200)


def test_every_worker_follows_the_file(home: Home, serve: Serve) -> None:
    key = create_key(home)
    keyed = Home(folder=home.folder, service_key=key, settings=home.settings)
    with serve(keyed, workers=2) as server, wires(server, 100) as opened:
        path = f"/v1/users/{uuid4()}/tokens"
        one_each: dict[int | None, Wire] = {}
        for wire in opened:
            assert wire.call("GET", path).status == 200
            one_each |= {worker_of_each(server, [wire])[0]: wire}
            if one_each.keys() == workers_of(server):
                break
        assert len(one_each) == 2
        service_key(home, "revoke", "--service", "api")
        deadline = time.monotonic() + FOLLOWS_SECONDS
        while {wire.call("GET", path).status for wire in one_each.values()} != {401}:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_key_is_held_to_its_scope_and_its_providers(home: Home, serve: Serve) -> None:
    key = create_key(home, "--scope", "tokens:write", "--provider", "canvas")
    with serve(home) as server, server.client(key) as client:
        body = {"access_token": "a token"}
        assert client.put(token_path(uuid4()), json=body).status_code == 201
        assert client.put(token_path(uuid4(), "google"), json=body).status_code == 403
        assert client.get(token_path(uuid4())).status_code == 403
