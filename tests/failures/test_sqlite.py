"""The embedded store's file, with everything that can happen to a file."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import COMMAND, Service, running_service
from tests.support.failures.load import path_of
from tests.support.failures.scenario import require
from tests.support.failures.table import BY_NAME
from tests.support.process.home import environment, new_home, token_vault
from tests.support.stores.stores import SqliteStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
# A user namespace of one's own needs no root, and in it tmpfs makes a file system of any size.
NAMESPACE = ("unshare", "--user", "--map-root-user", "--mount")
DISK_BYTES = 2 * 1024 * 1024
BALLAST = "ballast"


def _has_namespaces() -> bool:
    try:
        return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False, timeout=10).returncode == 0
    except FileNotFoundError:
        return False


small_disk = pytest.mark.skipif(not _has_namespaces(), reason="this kernel gives users no namespaces of their own")


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "vault.db")


@pytest.fixture
def service(store: SqliteStore, tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path, store.environment()) as service:
        yield service


@small_disk
def test_disk_full(tmp_path: Path) -> None:
    """A file system of two megabytes, filled to the last byte: the kernel's own ENOSPC."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounts = f'mount -t tmpfs -o size={DISK_BYTES} none "$0" && exec "$@"'
    within = (*NAMESPACE, "sh", "-c", mounts, str(disk))
    with running_service(tmp_path, SqliteStore(disk / "vault.db").environment(), within=within) as service:
        seen = Path(f"/proc/{service.process.pid}/root{disk}")  # the disk as the service sees it
        ballast = seen / BALLAST
        require(
            "SQLite's disk full",
            service=service,
            store=_Copied(seen / "vault.db", tmp_path / "copy.db"),
            breaks=lambda: _fill(ballast),
            mends=ballast.unlink,
        )
        assert "the disk is full; nothing was written" in "\n".join(service.lines())


@dataclass(frozen=True, slots=True)
class _Copied:
    """A database as its files are now; SQLite resolves the link into the namespace, and so would look elsewhere."""

    path: Path
    copy: Path

    def rows(self) -> list[dict[str, Any]]:
        for suffix in ("", "-wal"):
            shutil.copyfile(f"{self.path}{suffix}", f"{self.copy}{suffix}")
        return SqliteStore(self.copy).rows()


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_file_size_limit(service: Service, store: SqliteStore) -> None:
    """Where there are no namespaces: the kernel refuses to let any file of the process grow, with EFBIG."""
    pid = service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    log = Path(f"{store.path}-wal")
    require(
        "SQLite's disk full",
        service=service,
        store=store,
        breaks=lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (log.stat().st_size, before[1])),
        mends=lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before),
    )


def test_locked(service: Service, store: SqliteStore) -> None:
    other = apsw.Connection(str(store.path))
    require(
        "SQLite's file locked by another process",
        service=service,
        store=store,
        breaks=lambda: _lock(other),
        mends=lambda: other.execute("ROLLBACK"),
    )
    other.close()


def _lock(other: apsw.Connection) -> None:
    other.set_busy_timeout(5_000)
    other.execute("BEGIN IMMEDIATE")


def test_moved(service: Service, store: SqliteStore) -> None:
    elsewhere = store.path.with_name("elsewhere.db")
    require(
        "SQLite's file moved or replaced",
        service=service,
        store=store,
        breaks=lambda: store.path.rename(elsewhere),
        mends=lambda: elsewhere.rename(store.path),
    )


def test_moved_without_its_log(service: Service, store: SqliteStore, tmp_path: Path) -> None:
    """What is committed may be in the -wal alone, and SQLite deletes a -wal that it finds beside an empty file."""
    elsewhere = store.path.with_name("elsewhere.db")
    log = store.path.with_name("vault.db-wal")
    with service.client() as client:
        assert client.put(path_of(USER), json={"access_token": "kept"}).status_code == 201
        committed = log.read_bytes()
        store.path.rename(elsewhere)
        problem(client.get("/v1/encryption"), 500, "store_misconfigured")
        started = token_vault("serve", folder=tmp_path, settings={**new_home(tmp_path).settings, **store.environment()})
        assert (started.returncode, started.stderr.startswith("Error: SQLITE_PATH: ")) == (2, True)
        assert not store.path.exists()
        assert log.read_bytes() == committed
        elsewhere.rename(store.path)
        assert client.get("/v1/encryption").json()["tokens"] == 1
    assert [row["user_id"] for row in store.rows()] == [USER]


def test_read_only(tmp_path: Path, store: SqliteStore) -> None:
    """Byte 18 of the file says which versions may write it; SQLite then opens it read-only, for root too."""
    failure = BY_NAME["SQLite's file marked read-only"]
    with running_service(tmp_path, store.environment()) as service, service.client() as client:
        assert client.put(path_of(USER), json={"access_token": "kept"}).status_code == 201
    content = bytearray(store.path.read_bytes())
    writable, content[18] = content[18], 3
    store.path.write_bytes(content)
    before = store.rows()
    with running_service(tmp_path, store.environment()) as service, service.client() as client:
        assert failure.status is not None
        assert failure.code is not None
        problem(client.put(path_of(USER), json={"access_token": "lost"}), failure.status, failure.code)
        assert client.get(path_of(USER)).json()["access_token"] == "kept"
        assert client.get("/readyz").status_code == 200
        assert store.rows() == before
    content[18] = writable
    store.path.write_bytes(content)
    with running_service(tmp_path, store.environment()) as service, service.client() as client:
        assert client.put(path_of(USER), json={"access_token": "new"}).status_code == 200


@small_disk
def test_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    home = new_home(tmp_path, SQLITE_PATH=str(disk / "vault.db"))
    within = (*NAMESPACE, "sh", "-c", 'mount -t tmpfs -o ro none "$0" && exec "$@"', str(disk))
    started = subprocess.run(
        [*within, COMMAND, "serve"],
        cwd=tmp_path,
        env=environment(home.settings),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert started.returncode == 2, started.stdout + started.stderr
    (line,) = started.stderr.splitlines()
    assert "SQLITE_PATH" in line
