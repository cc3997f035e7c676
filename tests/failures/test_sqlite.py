"""Failures of the SQLite store's file below a service under load."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.failures.load import path_of
from tests.support.failures.scenario import require_documented_failure
from tests.support.failures.table import BY_NAME
from tests.support.process.home import COMMAND, environment, new_home, token_vault
from tests.support.stores.stores import SqliteStore, sqlite_connection

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
# a user namespace needs no root; some systems refuse to mount in one, and root needs none
NAMESPACES = (("unshare", "--user", "--map-root-user", "--mount"), ("unshare", "--mount"))
DISK_BYTES = 2 * 1024 * 1024


def _with_disk(disk: Path, options: str) -> tuple[str, ...]:
    """Return the start of a command that runs with a file system of its own at `disk`.

    The very mount is tried first, because a system may allow one place or option and refuse another.
    """
    disk.mkdir()
    refusals = []
    for namespace in NAMESPACES:
        start = (*namespace, "sh", "-c", f'mount -t tmpfs -o {options} none "$0" && exec "$@"', str(disk))
        try:
            tried = subprocess.run((*start, "true"), capture_output=True, text=True, check=False, timeout=60)
        except FileNotFoundError:
            pytest.skip("this system has no unshare")
        if tried.returncode == 0:
            return start
        refusals.append(tried.stderr.strip())
    pytest.skip(f"this system does not let this user mount a tmpfs: {refusals}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(tmp_path_factory.mktemp("failures") / "vault.db")


@pytest.fixture(scope="module")
def service(store: SqliteStore) -> Iterator[Service]:
    """One service for the failures that it recovers from."""
    with running_service(store.path.parent, store.environment()) as service:
        yield service


def test_disk_full(tmp_path: Path) -> None:
    """A file system of two megabytes, filled to the last byte, gives the kernel's ENOSPC."""
    disk = tmp_path / "disk"
    within = _with_disk(disk, f"size={DISK_BYTES}")
    with running_service(tmp_path, SqliteStore(disk / "vault.db").environment(), within=within) as service:
        mounted = Path(f"/proc/{service.process.pid}/root{disk}")  # the disk as the service sees it
        ballast = mounted / "ballast"
        require_documented_failure(
            "SQLite's disk full",
            service=service,
            store=_CopiedFiles(mounted / "vault.db", tmp_path / "copy.db"),
            breaks=lambda: _fill(ballast),
            mends=ballast.unlink,
        )
        assert "the disk is full; nothing was written" in "\n".join(service.lines())


@dataclass(frozen=True, slots=True)
class _CopiedFiles:
    """A database read from a copy, because SQLite resolves the link into the namespace and opens another path."""

    path: Path
    copy: Path

    def rows(self) -> list[dict[str, Any]]:
        _copy_database(self.path, self.copy)
        return SqliteStore(self.copy).rows()


def _copy_database(path: Path, copy: Path) -> None:
    for suffix in ("-wal", ""):  # a checkpoint between the two moves rows from the first to the second
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        for size in (65_536, 4_096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def test_file_size_limit(service: Service, store: SqliteStore) -> None:
    """Without namespaces: a limit on the size of the process's files gives the kernel's EFBIG."""
    pid = service.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    wal = Path(f"{store.path}-wal")
    require_documented_failure(
        "SQLite's disk full",
        service=service,
        store=store,
        breaks=lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, before[1])),
        mends=lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before),
    )


def test_locked(service: Service, store: SqliteStore) -> None:
    other = sqlite_connection(store.path)
    require_documented_failure(
        "SQLite's file locked by another process",
        service=service,
        store=store,
        breaks=lambda: other.execute("BEGIN IMMEDIATE"),
        mends=lambda: other.execute("ROLLBACK"),
    )
    other.close()


def test_moved(service: Service, store: SqliteStore) -> None:
    elsewhere = store.path.with_name("elsewhere.db")
    require_documented_failure(
        "SQLite's file moved or replaced",
        service=service,
        store=store,
        breaks=lambda: store.path.rename(elsewhere),
        mends=lambda: elsewhere.rename(store.path),
    )


def test_moved_without_its_wal(service: Service, store: SqliteStore, tmp_path: Path) -> None:
    """The -wal may hold the only copy of a commit, and SQLite deletes a -wal that it finds beside an empty file."""
    elsewhere = store.path.with_name("elsewhere.db")
    wal = store.path.with_name("vault.db-wal")
    with service.client() as client:
        assert client.put(path_of(USER), json={"access_token": "kept"}).is_success
        committed = wal.read_bytes()
        store.path.rename(elsewhere)
        problem(client.get("/v1/encryption"), 500, "store_misconfigured")
        started = token_vault("serve", folder=tmp_path, settings={**new_home(tmp_path).settings, **store.environment()})
        assert (started.returncode, started.stderr.startswith("Error: SQLITE_PATH: ")) == (2, True)
        assert not store.path.exists()
        assert wal.read_bytes() == committed
        elsewhere.rename(store.path)
        assert client.get("/v1/encryption").status_code == 200
        assert client.get(path_of(USER)).json()["access_token"] == "kept"
    assert USER in {row["user_id"] for row in store.rows()}


def test_read_only(service: Service, store: SqliteStore, tmp_path: Path) -> None:
    """Byte 18 of the file holds the version needed to write it; with a higher one SQLite opens it read-only.

    <https://www.sqlite.org/fileformat2.html#file_format_version_numbers>
    """
    failure = BY_NAME["SQLite's file marked read-only"]
    assert failure.status is not None
    assert failure.code is not None
    with service.client() as client:
        assert client.put(path_of(USER), json={"access_token": "kept"}).is_success
    copy = SqliteStore(tmp_path / "vault.db")
    _copy_database(store.path, copy.path)
    before = copy.rows()  # closing the copy also moves its -wal into the file
    content = bytearray(copy.path.read_bytes())
    writable, content[18] = content[18], 3
    copy.path.write_bytes(content)
    with running_service(tmp_path, copy.environment()) as restarted, restarted.client() as client:
        problem(client.put(path_of(USER), json={"access_token": "lost"}), failure.status, failure.code)
        assert client.get(path_of(USER)).json()["access_token"] == "kept"
        assert client.get("/readyz").status_code == 200
        assert copy.rows() == before
    content[18] = writable
    copy.path.write_bytes(content)
    with running_service(tmp_path, copy.environment()) as restarted, restarted.client() as client:
        assert client.put(path_of(USER), json={"access_token": "new"}).status_code == 200


def test_read_only_file_system(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    home = new_home(tmp_path, SQLITE_PATH=str(disk / "vault.db"))
    started = subprocess.run(
        [*_with_disk(disk, "ro"), COMMAND, "serve"],
        cwd=tmp_path,
        env=environment(home.settings),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert started.returncode == 2, started.stdout + started.stderr
    (line,) = started.stderr.splitlines()
    assert "SQLITE_PATH" in line
