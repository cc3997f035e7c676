"""The rows of a store, read and written past the vault, in whatever bytes the database accepts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

import apsw
import psycopg

from app.stores.rows import COLUMNS
from tests.support.stack.postgres import Database

Row = dict[str, Any]
_TYPES: Final = {  # PostgreSQL's; the others are text
    "id": "uuid",
    "user_id": "uuid",
    "expires_at": "timestamptz",
    "scopes": "text[]",
    "is_active": "boolean",
    "metadata": "jsonb",
    "version": "bigint",
    "created_at": "timestamptz",
    "updated_at": "timestamptz",
    "last_refreshed": "timestamptz",
}
_NUMBERS: Final = frozenset({"version", "is_active"})
_ORDER: Final = "ORDER BY user_id, provider, service_type"


class Table(Protocol):
    """All columns of all rows. Bytes that are not UTF-8 are read and written as `surrogateescape` does."""

    def rows(self) -> list[Row]:
        """Return every row, ordered by token id."""
        ...

    def write(self, *, delete: Sequence[Row], insert: Sequence[Row]) -> bool:
        """Delete rows and insert others in one transaction; `False` if the table refuses, and nothing changes."""
        ...


class SqliteTable:
    def __init__(self, path: Path) -> None:
        self._connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self._connection.set_busy_timeout(30_000)
        self._connection.execute("PRAGMA synchronous = OFF")  # these writes need not survive

    def rows(self) -> list[Row]:
        selected = ", ".join(name if name in _NUMBERS else f"CAST({name} AS BLOB)" for name in COLUMNS)
        found = self._connection.execute(f"SELECT {selected} FROM oauth_tokens {_ORDER}")  # noqa: S608  constants only
        return [dict(zip(COLUMNS, map(_as_text, row), strict=True)) for row in found]

    def write(self, *, delete: Sequence[Row], insert: Sequence[Row]) -> bool:
        marks = ", ".join("?" if name in _NUMBERS else "CAST(? AS TEXT)" for name in COLUMNS)
        with suppress(apsw.Error), self._connection:
            for row in delete:
                self._connection.execute("DELETE FROM oauth_tokens WHERE id = CAST(? AS TEXT)", (_as_bytes(row["id"]),))
            for row in insert:
                values = [_as_bytes(row[name]) for name in COLUMNS]
                self._connection.execute(f"INSERT INTO oauth_tokens ({', '.join(COLUMNS)}) VALUES ({marks})", values)  # noqa: S608  constants only
            return True
        return False


class PostgresTable:
    """Past PostgREST and every trigger and foreign key, as an owner of the table can write."""

    def __init__(self, database: Database) -> None:
        self._connection = database.connection
        self._connection.execute("set session_replication_role = replica")

    def rows(self) -> list[Row]:
        selected = ", ".join(f"{name}::text" for name in COLUMNS)
        found = self._connection.execute(f"select {selected} from public.oauth_tokens {_ORDER}".encode())  # noqa: S608  constants only
        return [dict(row) for row in found]

    def write(self, *, delete: Sequence[Row], insert: Sequence[Row]) -> bool:
        marks = ", ".join(f"%s::text::{_TYPES.get(name, 'text')}" for name in COLUMNS)
        sql = f"insert into public.oauth_tokens ({', '.join(COLUMNS)}) values ({marks})".encode()  # noqa: S608  constants only
        # other bytes than UTF-8 cannot be sent, and none can be stored
        with suppress(psycopg.Error, UnicodeEncodeError), self._connection.transaction():
            for row in delete:
                self._connection.execute("delete from public.oauth_tokens where id = %s::text::uuid", [row["id"]])
            for row in insert:
                self._connection.execute(sql, [None if row[name] is None else str(row[name]) for name in COLUMNS])
            return True
        return False


def _as_text(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _as_bytes(value: Any) -> Any:
    return value.encode(errors="surrogateescape") if isinstance(value, str) else value
