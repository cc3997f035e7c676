"""The file of the embedded store: its table, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import apsw

from app.errors import StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.rows import COLUMNS

BUSY_TIMEOUT_MILLISECONDS: Final = 3_000

# The columns of migrations/ in SQLite's types: scopes and metadata are JSON, times RFC 3339 in UTC.
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
    version           INTEGER NOT NULL DEFAULT 1,
    encryption_scheme TEXT,
    created_at        TEXT,
    updated_at        TEXT,
    last_refreshed    TEXT NOT NULL,
    UNIQUE (user_id, provider, service_type)
) STRICT
"""
_INDEX = "CREATE INDEX IF NOT EXISTS oauth_tokens_scheme ON oauth_tokens (encryption_scheme, id)"


def prepare_database(path: Path) -> None:
    """Create the file and its table where they are missing; raises a `StoreError` where that cannot be done."""
    with translating_sqlite_errors():
        create_private(path)
        connect(path).close()


def create_private(path: Path) -> None:
    """Create the file readable by its owner alone; SQLite gives its companions the same mode.

    Refused where only the write-ahead log is there: SQLite would delete it as soon as it met an empty file beside it,
    and with it every commit that has not reached the file.
    """
    try:
        file = path.resolve()
        log = file.parent / f"{file.name}-wal"
        if not file.exists() and log.exists() and log.stat().st_size:
            raise StoreMisconfigured(
                "the file that SQLITE_PATH names is missing, its -wal is not: put the file back or move the -wal"
            )
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError:
        raise StoreMisconfigured("the file that SQLITE_PATH names cannot be created or written") from None


def connect(path: Path) -> apsw.Connection:
    """Open the file, with its table. WAL with `synchronous=FULL`: what is committed survives a loss of power.

    A missing file is not created here: beside a new one SQLite deletes the write-ahead log of the old.
    """
    # absolute, so that no name is taken for SQLite's own, like :memory:
    connection = apsw.Connection(str(path.absolute()), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MILLISECONDS)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(_TABLE)
    require_columns(missing_columns(connection))
    connection.execute(_INDEX)
    return connection


def missing_columns(connection: apsw.Connection) -> list[str]:
    present = {row[1] for row in connection.execute("PRAGMA table_info(oauth_tokens)")}
    return [column for column in COLUMNS if column not in present]


def require_columns(missing: list[str]) -> None:
    if missing:
        raise StoreMisconfigured(f"oauth_tokens lacks the columns {', '.join(missing)}")


@contextmanager
def translating_sqlite_errors() -> Iterator[None]:
    """Turn apsw's errors into the vault's. Their text is dropped: it may quote SQL or a path."""
    try:
        yield
    except (apsw.BusyError, apsw.LockedError):
        raise StoreTimeout("the database stayed locked by another process; nothing was written") from None
    except apsw.FullError:
        raise StoreUnavailable("the disk is full; nothing was written") from None
    except (apsw.ReadOnlyError, apsw.PermissionsError):
        raise StoreMisconfigured("the database file is read-only") from None
    except (apsw.NotADBError, apsw.CorruptError):
        raise StoreMisconfigured("the file is not an intact SQLite database") from None
    except (apsw.SQLError, apsw.ConstraintError, apsw.SchemaChangeError):
        raise StoreMisconfigured("oauth_tokens does not have the columns that the vault needs") from None
    except apsw.Error:
        raise StoreUnavailable("the database cannot be reached; the write is not known to have happened") from None
