"""The service-keys file: concurrent edits, invalid files, and a running vault that follows the edits."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from uuid import uuid4

import pytest

from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_key_file import add_key, read_key_file
from app.callers.service_keys import KeyListError, Scope, ServiceKey
from app.errors import Unauthenticated
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


CREATE = ("create", "--service", "api", "--scope", "tokens:read")


def test_an_edit_writes_through_no_link_that_was_planted(home: Home) -> None:
    create_key(home)
    victim = home.folder / "victim"
    victim.write_text("precious")
    (home.folder / f"{KEY_FILE}.lock").unlink()
    (home.folder / f"{KEY_FILE}.lock").symlink_to(victim)
    require_refusal(service_key(home, *CREATE), 2, KEY_FILE)
    assert victim.read_text() == "precious"
    assert len(entries_of(home)) == 1


def test_no_draft_has_a_name_that_can_be_foretold(tmp_path: Path) -> None:
    """A draft whose name is its process's number could be replaced by a link before."""
    path, victim = tmp_path / "service-keys.json", tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f"{path.name}.{os.getpid()}.new").symlink_to(victim)
    add_key(path, ServiceKey(service="api", sha256="0" * 64, scopes=frozenset({Scope.READ})))
    assert victim.read_text() == "precious"
    assert [key.service for key in read_key_file(path)] == ["api"]


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_file_that_others_can_write_is_refused(home: Home, mode: int) -> None:
    key = create_key(home)
    path = home.folder / KEY_FILE
    directory = ServiceKeyDirectory(file=path, reload_seconds=0)
    assert directory.identify(key).service == "api"
    path.chmod(mode)
    assert "chmod go-w" in (directory.problem or "")
    with pytest.raises(Unauthenticated):
        directory.identify(key)
    for command in (CREATE, ("list",), ("revoke", hash_of(key)[:12])):
        require_refusal(service_key(home, *command), 2, KEY_FILE, "chmod go-w")
    path.chmod(0o644)
    assert directory.identify(key).service == "api"


@pytest.mark.parametrize(("mode", "refused"), [(0o777, True), (0o770, True), (0o1777, False), (0o755, False)])
def test_a_file_in_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int, refused: bool) -> None:
    folder = tmp_path / "keys"
    key = ServiceKey(service="api", sha256="0" * 64, scopes=frozenset({Scope.READ}))
    add_key(folder / "service-keys.json", key)
    (tmp_path / "link.json").symlink_to(folder / "service-keys.json")
    folder.chmod(mode)
    for path in (folder / "service-keys.json", tmp_path / "link.json"):
        assert (ServiceKeyDirectory(file=path).problem is not None) == refused
        with pytest.raises(KeyListError, match="folder") if refused else nullcontext():
            read_key_file(path)


def test_a_fifo_as_key_file_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "service-keys.json", 0o600)
    assert "regular file" in (ServiceKeyDirectory(file=tmp_path / "service-keys.json").problem or "")


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
