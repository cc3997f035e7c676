"""The service-keys file: concurrent edits, invalid files, and a running vault that follows the edits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import pytest

from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_key_file import add_key, read_key_file, revoke_keys
from app.callers.service_keys import KeyListError, Scope, ServiceKey
from app.errors import Unauthenticated
from tests.support.paths import ROOT
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

IS_ROOT = os.geteuid() == 0
NEEDS_ROOT = pytest.mark.skipif(not IS_ROOT, reason="only root can give files away")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return home_with_key_file(tmp_path)


def _key(service: str) -> ServiceKey:
    return ServiceKey(service=service, sha256=hash_of(service), scopes=frozenset({Scope.READ}))


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


SOMEBODY = 54_321
# reports each call that concerns the durability of an edit
TRACE = """
import os, stat, sys
from pathlib import Path
from app.callers.service_key_file import add_key
from app.callers.service_keys import Scope, ServiceKey

fsync = os.fsync

def report(descriptor):
    fsync(descriptor)
    print("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")

os.fsync = report
sys.addaudithook(lambda event, _: print("rename") if event == "os.rename" else None)
add_key(Path(sys.argv[1]), ServiceKey(service="api", sha256="0" * 64, scopes=frozenset({Scope.READ})))
"""
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
    add_key(path, _key("api"))
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
    add_key(folder / "service-keys.json", _key("api"))
    (tmp_path / "link.json").symlink_to(folder / "service-keys.json")
    folder.chmod(mode)
    for path in (folder / "service-keys.json", tmp_path / "link.json"):
        assert (ServiceKeyDirectory(file=path).problem is not None) == refused
        with pytest.raises(KeyListError, match="folder") if refused else nullcontext():
            read_key_file(path)


def test_an_edit_through_a_link_brings_no_revoked_key_back(tmp_path: Path) -> None:
    """An edit through the link waits, between reading and writing, for one of the target that must come after it."""
    path = tmp_path / "real" / "service-keys.json"
    add_key(path, _key("stolen"))
    link = tmp_path / "etc.json"
    link.symlink_to(path)
    reading, begun = threading.Event(), threading.Event()

    def revoke() -> None:
        assert reading.wait(60)
        begun.set()
        revoke_keys(path, lambda key: key.service == "stolen")

    def wait_for_the_revocation(key: ServiceKey) -> bool:
        reading.set()
        assert begun.wait(60)
        revoking.join(1)  # it has the time to end, unless it waits for this edit
        return key.service == "old"

    add_key(path, _key("old"))
    revoking = threading.Thread(target=revoke)
    revoking.start()
    revoke_keys(link, wait_for_the_revocation)
    revoking.join(60)
    assert [key.service for key in read_key_file(path)] == []


@NEEDS_ROOT
def test_the_owner_of_a_folder_edits_after_root(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    os.chown(folder, SOMEBODY, SOMEBODY)
    add_key(folder / "service-keys.json", _key("api"))
    for name in ("service-keys.json", "service-keys.json.lock"):
        status = (folder / name).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (SOMEBODY, SOMEBODY, 0o600)


@NEEDS_ROOT
def test_a_lock_of_another_user_is_named_with_the_remedy() -> None:
    """For example one that root made before the folder was given to the vault's user."""
    with (
        TemporaryDirectory() as name,
        ProcessPoolExecutor(1, get_context("fork"), initializer=os.setuid, initargs=(SOMEBODY,)) as somebody,
    ):
        path = Path(name) / "service-keys.json"
        os.chown(name, SOMEBODY, SOMEBODY)
        somebody.submit(add_key, path, _key("api")).result()
        lock = path.with_name("service-keys.json.lock")
        os.chown(lock, 0, 0)
        with pytest.raises(
            KeyListError, match=f"{lock} belongs to another user; .*chown {SOMEBODY} {lock}.*, or remove it"
        ):
            somebody.submit(revoke_keys, path, bool).result()
        assert [key.service for key in read_key_file(path)] == ["api"]
        os.chown(lock, SOMEBODY, SOMEBODY)
        assert len(somebody.submit(revoke_keys, path, bool).result()) == 1


@NEEDS_ROOT
def test_root_gives_no_file_away_that_is_linked_as_lock(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o700)
    os.chown(folder, SOMEBODY, SOMEBODY)
    (tmp_path / "precious").write_text("of root")
    (folder / "service-keys.json.lock").hardlink_to(tmp_path / "precious")
    add_key(folder / "service-keys.json", _key("api"))
    assert (tmp_path / "precious").stat().st_uid == 0


@NEEDS_ROOT
@pytest.mark.parametrize(("folder_owner", "refused"), [(0, True), (SOMEBODY, False)])
def test_a_file_of_another_user_is_refused(tmp_path: Path, folder_owner: int, refused: bool) -> None:
    folder = tmp_path / "keys"
    path = folder / "service-keys.json"
    add_key(path, _key("api"))
    os.chown(path, SOMEBODY, SOMEBODY)
    os.chown(folder, folder_owner, folder_owner)
    folder.chmod(0o1777)
    assert (ServiceKeyDirectory(file=path).problem is not None) == refused
    with pytest.raises(KeyListError, match="another user") if refused else nullcontext():
        read_key_file(path)


@NEEDS_ROOT
def test_a_link_of_another_user_is_refused(tmp_path: Path) -> None:
    """The target is in a folder of the other user, and so would be trusted there."""
    sticky, theirs = tmp_path / "sticky", tmp_path / "theirs"
    add_key(theirs / "service-keys.json", _key("api"))
    for path in (theirs, theirs / "service-keys.json"):
        os.chown(path, SOMEBODY, SOMEBODY)
    sticky.mkdir()
    sticky.chmod(0o1777)
    link = sticky / "service-keys.json"
    link.symlink_to(theirs / "service-keys.json")
    read_key_file(link)
    os.chown(link, SOMEBODY, SOMEBODY, follow_symlinks=False)
    with pytest.raises(KeyListError, match="another user"):
        read_key_file(link)


MOUNT_AND_READ = """
set -e
mount -t tmpfs none "$1" && printf secret > "$1/secret" && chown 54321 "$1/secret" && chmod 444 "$1/secret"
touch "$2/secret" && mount --bind "$1/secret" "$2/secret"
exec "$3" -c 'import sys; from pathlib import Path; from app.private_file import read_private_file
print(read_private_file(Path(sys.argv[1]), maximum_bytes=100).decode())' "$2/secret"
"""


@pytest.mark.skipif(not (IS_ROOT and shutil.which("unshare")), reason="needs root and unshare")
def test_a_secret_that_is_mounted_alone_may_belong_to_anybody(tmp_path: Path) -> None:
    """Docker Compose mounts each secret so, with the owner that it has on the host."""
    host, secrets = tmp_path / "host", tmp_path / "secrets"
    host.mkdir()
    secrets.mkdir()
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted")

    def read() -> subprocess.CompletedProcess[str]:
        command = ["unshare", "-m", "sh", "-c", MOUNT_AND_READ, "sh", str(host), str(secrets), sys.executable]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)

    done = read()
    assert done.stdout == "secret\n", done.stderr
    secrets.chmod(0o1777)
    assert "another user" in read().stderr


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(OSError, match="symbolic links"):
        read_key_file(tmp_path / "a")


def test_an_edit_is_on_disk_when_it_returns(tmp_path: Path) -> None:
    """The file and then its folder are flushed, after the file got its name."""
    path = tmp_path / "service-keys.json"
    done = subprocess.run(
        [sys.executable, "-c", TRACE, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["file", "rename", "folder"]


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
