"""The SQLite file: table definition, opening, and translation of errors."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from app.errors import StoreError, StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.rows import COLUMNS

BUSY_SECONDS: Final = 3.0
_BUSY_PAUSE_SECONDS: Final = 0.0005

# The columns of migrations/ in SQLite's types: scopes and metadata are JSON text, timestamps RFC 3339 text in UTC.
_TABLE = """
CREATE TABLE IF NOT EXISTS oauth_tokens (
    id                TEXT PRIMARY KEY NOT NULL,
    user_id           TEXT NOT NULL,
    provider          TEXT NOT NULL,
    service_type      TEXT NOT NULL DEFAULT 'default',
    access_token      TEXT NOT NULL,
    refresh_token     TEXT,
    expires_at        TEXT,
    scopes            TEXT,
    email             TEXT,
    provider_url      TEXT,
    is_active         INTEGER,
    metadata          TEXT NOT NULL DEFAULT '{}',
    version           INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000 AS INTEGER)),
    encryption_scheme TEXT,
    created_at        TEXT,
    updated_at        TEXT,
    last_refreshed    TEXT NOT NULL,
    refresh_token_expires_at TEXT,
    refresh_generation INTEGER NOT NULL DEFAULT 0,
    refresh_holder    TEXT,
    refresh_leased_until REAL,
    refresh_attempts  INTEGER NOT NULL DEFAULT 0,
    refresh_retry_at  TEXT,
    refresh_failure   TEXT,
    UNIQUE (user_id, provider, service_type)
) STRICT
"""
# The condition of the indexes for background refreshes; SQLite uses them for queries with these very words.
REFRESHABLE: Final = "refresh_token <> '' AND coalesce(is_active, 1) AND encryption_scheme IS NOT NULL"
_INDEXES = (
    "CREATE INDEX IF NOT EXISTS oauth_tokens_scheme ON oauth_tokens (encryption_scheme, id)",
    "CREATE INDEX IF NOT EXISTS oauth_tokens_provider_expires_at ON oauth_tokens (provider, expires_at, id)",
    f"CREATE INDEX IF NOT EXISTS oauth_tokens_expiring ON oauth_tokens (provider, expires_at, id) WHERE {REFRESHABLE}",
    f"CREATE INDEX IF NOT EXISTS oauth_tokens_idle ON oauth_tokens (provider, last_refreshed, id) WHERE {REFRESHABLE}",
)


def prepare_database(path: Path) -> None:
    """Create the file and its table if they are missing; raise a `StoreError` if that fails."""
    with translating_sqlite_errors():
        create_private(path)
        connect(path).close()


def create_private(path: Path) -> None:
    """Create the file with mode 0600; SQLite gives its -wal and -shm files the same mode.

    Raises `StoreMisconfigured` if only the -wal exists: SQLite deletes a -wal beside an empty file, and with it every
    commit that has not reached the file yet.
    """
    try:
        file = path.resolve()
        log = file.parent / f"{file.name}-wal"
        if not file.exists() and log.exists() and log.stat().st_size:
            raise StoreMisconfigured(
                "the file that SQLITE_PATH names is missing but its -wal exists: restore the file or move the -wal away"
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        raise StoreMisconfigured("the file that SQLITE_PATH names cannot be created or written") from None


def connect(path: Path) -> apsw.Connection:
    """Open the file and create its table if it is missing.

    WAL with `synchronous=FULL`: a commit survives power loss. `secure_delete`: what a statement deletes or replaces is
    overwritten with zeros in its page; the group commit empties the write-ahead log soon after an erasure. Never
    creates the file, because SQLite would delete the write-ahead log of a file that was moved away.
    """
    # an absolute path is never one of SQLite's special names, such as :memory:
    connection = apsw.Connection(str(path.absolute()), flags=apsw.SQLITE_OPEN_READWRITE)
    wait_for_locks(connection)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    connection.execute(_TABLE)
    require_columns(missing_columns(connection))
    for index in _INDEXES:
        connection.execute(index)
    return connection


def wait_for_locks(connection: apsw.Connection) -> None:
    """Wait up to `BUSY_SECONDS` for another process's lock, and look for it every 0.5 ms.

    SQLite's own waiting looks less and less often, up to every 100 ms, while a commit holds the lock for about one
    flush to the disk.
    """
    until = 0.0

    def wait(attempt: int) -> bool:
        nonlocal until
        now = time.monotonic()
        if attempt == 0:
            until = now + BUSY_SECONDS
        time.sleep(_BUSY_PAUSE_SECONDS)
        return now < until

    connection.set_busy_handler(wait)


def missing_columns(connection: apsw.Connection) -> list[str]:
    present = {row[1] for row in connection.execute("PRAGMA table_info(oauth_tokens)")}
    return [column for column in COLUMNS if column not in present]


def require_columns(missing: list[str]) -> None:
    if missing:
        raise StoreMisconfigured(f"oauth_tokens lacks the columns {', '.join(missing)}")


@contextmanager
def translating_sqlite_errors() -> Iterator[None]:
    """Raise the vault's errors in place of apsw's."""
    try:
        yield
    except apsw.Error as error:
        raise translated(error) from None


def translated(error: apsw.Error) -> StoreError:
    """Return the vault's error for one of apsw's, without its text, which may quote SQL or a path."""
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return StoreTimeout("the database stayed locked by another process; nothing was written")
    if isinstance(error, apsw.FullError):
        return StoreUnavailable("the disk is full; nothing was written")
    if isinstance(error, apsw.ReadOnlyError | apsw.PermissionsError):
        return StoreMisconfigured("the database file is read-only")
    if isinstance(error, apsw.NotADBError | apsw.CorruptError):
        return StoreMisconfigured("the file is not an intact SQLite database")
    if isinstance(error, apsw.SQLError | apsw.ConstraintError | apsw.SchemaChangeError):
        return StoreMisconfigured("oauth_tokens does not have the columns or constraints that the vault needs")
    return StoreUnavailable("the database failed; whether the write happened is unknown")
