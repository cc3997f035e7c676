"""Two PostgreSQL servers with synchronous streaming replication, on TCP ports, that can be killed and promoted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row

from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.stack.pgbouncer import PgBouncer
from tests.support.stack.postgres import SUPABASE_ROLES, Database, new_data_folder, server_user
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import CREATE_LOGIN, VAULT_LOGIN
from tests.support.waiting import eventually

_DATABASE: Final = "vault"
# kill -9 loses nothing that was written, so it needs no fsync; commits wait for the standby
_SETTINGS: Final = "fsync = off\nfull_page_writes = off\nsynchronous_commit = on\nhot_standby = on\n"


@dataclass(frozen=True, slots=True)
class _Programs:
    """The server's programs and the user who runs them, `None` for this process's own."""

    folder: Path
    user: int | None

    def run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [str(self.folder / name), *arguments], user=self.user, cwd="/", check=True, capture_output=True, timeout=120
        )

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            command = [str(self.folder / "postgres"), *arguments]
            return subprocess.Popen(command, user=self.user, cwd="/", stdout=output, stderr=output)


class Node:
    """One server: a primary, or a standby of the other one."""

    def __init__(self, *, folder: Path, port: int, programs: _Programs, reaper: Reaper) -> None:
        self.port = port
        self._folder = folder
        self._programs = programs
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def place(self) -> str:
        """The server's place as libpq and PgBouncer write it."""
        return f"host={LOOPBACK} port={self.port}"

    def uri(self, user: str) -> str:
        """Return the libpq URI of the vault's database. No role needs a password."""
        return f"postgresql://{user}@{LOOPBACK}:{self.port}/{_DATABASE}"

    def start(self) -> None:
        arguments = ("-D", str(self._folder), "-p", str(self.port), "-h", LOOPBACK, "-k", "")
        self._process = self._programs.start(*arguments, log=self._folder.with_suffix(".log"))
        self._reaper.watch(self._process.pid, signal.SIGINT)
        eventually(self._answers)

    def kill(self) -> None:
        """Send SIGKILL to the server and all its processes, as a machine that fails ends them."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # it starts no more
        for process in (*self._children(), self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.wait()
        self._reaper.forget(self._process.pid)
        self._process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let a standby receive nothing during the block."""
        processes = self._children()
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            yield
        finally:
            for process in processes:
                os.kill(process, signal.SIGCONT)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Let a primary refuse writes during the block."""
        with self.connect("postgres") as database:
            database.sql("alter system set default_transaction_read_only = on")
            database.sql("select pg_reload_conf()")
            try:
                yield
            finally:
                database.sql("set default_transaction_read_only = off")
                database.sql("alter system reset default_transaction_read_only")
                database.sql("select pg_reload_conf()")

    def close(self) -> None:
        if self._process is not None:
            self.kill()

    def promote(self) -> None:
        """Make the standby the primary; it waits for no standby of its own."""
        with self.connect("postgres") as database:
            database.sql("select pg_promote(wait => true, wait_seconds => 60)")

    def follow(self, primary: Node) -> None:
        """Become a standby of this server, with a copy of its data, and let its commits wait for this one."""
        shutil.rmtree(self._folder, ignore_errors=True)
        place = f"{primary.place} user=postgres application_name=standby"
        self._programs.run(
            "pg_basebackup",
            *("--dbname", place, "--pgdata", str(self._folder), "--checkpoint", "fast", "--no-sync", "-R"),
        )
        self.start()
        with primary.connect("postgres") as database:
            database.sql("alter system set synchronous_standby_names = 'standby'")
            database.sql("select pg_reload_conf()")
            eventually(lambda: database.sql("select from pg_stat_replication where sync_state = 'sync'") != [])

    def require_password(self, role: str) -> None:
        """Let this role log in with its password only; no other role needs one."""
        file = self._folder / "pg_hba.conf"
        file.write_text(f"host all {role} {LOOPBACK}/32 scram-sha-256\n{file.read_text()}")
        with self.connect("postgres") as database:
            database.sql("select pg_reload_conf()")

    def stop_waiting(self) -> None:
        """Let commits wait for no standby."""
        with self.connect("postgres") as database:
            database.sql("alter system reset synchronous_standby_names")
            database.sql("select pg_reload_conf()")

    @contextmanager
    def connect(self, name: str = _DATABASE) -> Iterator[Database]:
        """Open a database as superuser."""
        with psycopg.connect(
            host=LOOPBACK, port=self.port, user="postgres", dbname=name, autocommit=True, row_factory=dict_row
        ) as connection:
            yield Database(name=name, connection=connection)

    def rows(self) -> list[dict[str, Any]]:
        """Return every row of a token."""
        with self.connect() as database:
            return database.sql("select user_id::text as user_id, version, created_at from public.oauth_tokens")

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"PostgreSQL ended:\n{self._folder.with_suffix('.log').read_text()}")
        try:
            with self.connect("postgres"):
                return True
        except psycopg.OperationalError:
            return False


@dataclass(slots=True)
class Cluster:
    """A primary whose commits wait until its standby has them."""

    primary: Node
    standby: Node

    def url(self, *servers: Node | PgBouncer) -> str:
        """Return the value of `DATABASE_URL` that names these servers, by default both."""
        hosts = ",".join(f"{LOOPBACK}:{server.port}" for server in servers or (self.primary, self.standby))
        return f"postgresql://{VAULT_LOGIN}@{hosts}/{_DATABASE}?sslmode=disable&target_session_attrs=read-write"

    def environment(self, *servers: Node) -> dict[str, str]:
        return {"TOKEN_STORE": "postgres", "DATABASE_URL": self.url(*servers)}

    def swap(self) -> None:
        """Note that the standby was promoted."""
        self.primary, self.standby = self.standby, self.primary
        self.primary.stop_waiting()


@contextmanager
def running_cluster(reaper: Reaper) -> Iterator[Cluster]:
    """Run a primary with the migrations applied and its standby, and delete both at the end."""
    with tempfile.TemporaryDirectory(prefix="vault-cluster-") as name:
        folder = Path(name)
        reaper.remove_folder(folder)
        data, server = folder / "one", new_data_folder(folder / "one")
        owner = server_user()
        if owner is not None:
            shutil.chown(folder, owner)
        with (data / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        programs = _Programs(Path(server.bin_path), owner)
        one, two = (
            Node(folder=folder / name, port=free_port(), programs=programs, reaper=reaper) for name in ("one", "two")
        )
        try:
            one.start()
            with one.connect("postgres") as database:
                database.connection.execute(f"create database {_DATABASE}".encode())
            with one.connect() as database:
                database.run_file(SUPABASE_ROLES)
                database.migrate()
                database.connection.execute(CREATE_LOGIN)
            two.follow(one)
            yield Cluster(one, two)
        finally:
            one.close()
            two.close()
