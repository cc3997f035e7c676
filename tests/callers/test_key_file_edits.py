"""The service-keys file: concurrent edits, invalid files, and a running vault that follows the edits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.process.home import Home, files_of, require_refusal
from tests.support.process.key_commands import (
    KEY_FILE,
    create_key,
    entries_of,
    hash_of,
    home_with_key_file,
    service_key,
    write_key_file,
)
from tests.support.process.server import Serve
from tests.support.process.wire import token_path
from tests.support.process.workers import one_wire_to_each_worker
from tests.support.waiting import eventually


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_key_file(tmp_path)


def test_eight_keys_created_at_once_are_all_in_the_file(home: Home) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(lambda number: create_key(home, service=f"service-{number}"), range(8)))
    expected = {f"service-{number}": hash_of(key) for number, key in enumerate(keys)}
    assert {entry["service"]: entry["sha256"] for entry in entries_of(home)} == expected
    assert [path.name for path in (home.folder / "keys").iterdir() if path.name.endswith(".new")] == []


COMMANDS = {
    "create": ("create", "--service", "api", "--scope", "tokens:read"),
    "list": ("list",),
    "revoke": ("revoke", "0123456789ab"),
    "revoke-service": ("revoke", "--service", "api"),
}
CONTENTS = ["[", "{}", '[{"service": "api"}]', "", "\xff"]


@pytest.mark.parametrize(
    ("command", "content"), [*(("create", content) for content in CONTENTS), *((name, "[") for name in COMMANDS)]
)
def test_an_invalid_file_is_reported_and_left_as_it_is(home: Home, command: str, content: str) -> None:
    write_key_file(home, content, encoding="latin-1")
    before = files_of(home.folder)[KEY_FILE]
    require_refusal(service_key(home, *COMMANDS[command]), 2, KEY_FILE)
    assert files_of(home.folder)[KEY_FILE] == before


def test_a_file_that_is_a_directory_is_reported(home: Home) -> None:
    (home.folder / KEY_FILE).mkdir(parents=True)
    require_refusal(service_key(home, "create", "--service", "api", "--scope", "tokens:read"), 2, KEY_FILE)
    require_refusal(service_key(home, "list"), 2, KEY_FILE)


def test_every_worker_follows_the_file(home: Home, serve: Serve) -> None:
    other = create_key(home, service="other")
    keyed = Home(folder=home.folder, service_key=other, settings=home.settings)
    with serve(keyed, workers=2) as server, one_wire_to_each_worker(server) as opened:
        path = f"/v1/users/{uuid4()}/tokens"
        assert len(opened) == 2

        def answers(key: str, status: int) -> None:
            authorization = f"Bearer {key}"
            eventually(
                lambda: {wire.call("GET", path, authorization=authorization).status for wire in opened} == {status}
            )

        answers(other, 200)
        key = create_key(home, service="new")
        answers(key, 200)
        service_key(home, "revoke", hash_of(key)[:12])
        answers(key, 401)
        answers(other, 200)
        limited = create_key(home, "--scope", "tokens:write", "--provider", "canvas")
        answers(limited, 200)
        with server.client(limited) as client:
            body = {"access_token": "a token"}
            assert client.put(token_path(uuid4()), json=body).status_code == 201
            assert client.put(token_path(uuid4(), "google"), json=body).status_code == 403
            assert client.get(token_path(uuid4())).status_code == 403
