"""The stores under test, and rows to put into them.

The fixture `store` is an empty store, and `tokens` its repository; a test that uses them runs once on each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import apsw
import pytest
from pydantic import SecretStr

from app.config.database_url import parse_database_url
from app.stores.postgres.repository import PostgresRepository
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.models import StoredToken, TokenId, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.stack.supabase import SupabaseStack

_BUSY_MILLISECONDS = 30_000
NOW = datetime(2026, 11, 23, 9, 0, 0, 123456, tzinfo=UTC)


def sqlite_connection(path: Path) -> apsw.Connection:
    """Open a store's file beside a vault that may be writing or at a checkpoint."""
    connection = apsw.Connection(str(path))
    connection.set_busy_timeout(_BUSY_MILLISECONDS)
    return connection


class Store(Protocol):
    """A store that a test accesses through its repository and directly."""

    def open(self) -> AbstractAsyncContextManager[TokenRepository]:
        """Open a repository, and close it on exit."""
        ...

    def environment(self) -> dict[str, str]:
        """Return the settings that choose this store."""
        ...

    def insert_raw(self, **columns: Any) -> None:
        """Write a row as another program would, past the repository."""
        ...

    def insert_many_raw(self, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows with the same columns, as `insert_raw` does, in one transaction."""
        ...

    def update_raw(self, row_id: str, **columns: Any) -> None:
        """Change columns of a row as another program would, past the repository and every trigger."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """Return every row, with the same Python types from each store."""
        ...


@dataclass(frozen=True, slots=True)
class SqliteStore:
    path: Path

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TokenRepository]:
        repository = SqliteRepository(path=self.path)
        try:
            yield repository
        finally:
            await repository.close()

    def environment(self) -> dict[str, str]:
        return {"TOKEN_STORE": "sqlite", "SQLITE_PATH": str(self.path)}

    def insert_raw(self, **columns: Any) -> None:
        self.insert_many_raw([columns])

    def insert_many_raw(self, rows: Sequence[dict[str, Any]]) -> None:
        names, marks = ", ".join(rows[0]), ", ".join("?" * len(rows[0]))
        with closing(sqlite_connection(self.path)) as connection, connection:
            for row in rows:
                values = [json.dumps(value) if isinstance(value, dict | list) else value for value in row.values()]
                connection.execute(f"INSERT INTO oauth_tokens ({names}) VALUES ({marks})", values)  # noqa: S608  column names of a test

    def update_raw(self, row_id: str, **columns: Any) -> None:
        values = [json.dumps(value) if isinstance(value, dict | list) else value for value in columns.values()]
        assignments = ", ".join(f"{name} = ?" for name in columns)
        connection = sqlite_connection(self.path)
        connection.execute(f"UPDATE oauth_tokens SET {assignments} WHERE id = ?", (*values, row_id))  # noqa: S608  column names of a test
        connection.close()

    def rows(self) -> list[dict[str, Any]]:
        connection = sqlite_connection(self.path)
        cursor = connection.execute("SELECT * FROM oauth_tokens ORDER BY user_id, provider, service_type")
        cursor.row_trace = _row_as_mapping
        found = [_with_python_types(row) for row in cursor]
        connection.close()
        return found

    def truncate(self) -> None:
        """Delete all tokens."""
        connection = sqlite_connection(self.path)
        connection.execute("DELETE FROM oauth_tokens")
        connection.close()


def _row_as_mapping(cursor: apsw.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.get_description(), row, strict=True)}


@dataclass(frozen=True, slots=True)
class SupabaseStore:
    stack: SupabaseStack

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TokenRepository]:
        from app.stores.supabase.repository import SupabaseRepository  # noqa: PLC0415  takes seconds

        repository = await SupabaseRepository.connect(url=self.stack.url, service_key=SecretStr(self.stack.service_key))
        try:
            yield repository
        finally:
            await repository.close()

    def environment(self) -> dict[str, str]:
        return {
            "TOKEN_STORE": "supabase",
            "SUPABASE_URL": self.stack.url,
            "SUPABASE_SERVICE_KEY": self.stack.service_key,
        }

    def insert_raw(self, **columns: Any) -> None:
        self.insert_many_raw([columns])

    def insert_many_raw(self, rows: Sequence[dict[str, Any]]) -> None:
        names = ", ".join(rows[0])
        self.stack.sql(
            f"insert into public.oauth_tokens ({names})"  # noqa: S608  column names of a test
            f" select {names} from jsonb_populate_recordset(null::public.oauth_tokens, %s::jsonb)",
            [json.dumps(rows)],
        )

    def update_raw(self, row_id: str, **columns: Any) -> None:
        [row] = self.stack.sql(
            "delete from public.oauth_tokens t where id = %s returning to_jsonb(t) as columns", [row_id]
        )
        self.insert_raw(**{**row["columns"], **columns})

    def rows(self) -> list[dict[str, Any]]:
        found = self.stack.sql(
            "select to_jsonb(t) as row from public.oauth_tokens t order by user_id, provider, service_type"
        )
        return [_with_python_types(dict(one["row"])) for one in found]


@dataclass(frozen=True, slots=True)
class PostgresStore(SupabaseStore):
    """The database of a Supabase project, without PostgREST."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[TokenRepository]:
        repository = await PostgresRepository.connect(
            url=lambda: parse_database_url(self.stack.login_url), pool_size=10
        )
        try:
            yield repository
        finally:
            await repository.close()

    def environment(self) -> dict[str, str]:
        return {"TOKEN_STORE": "postgres", "DATABASE_URL": self.stack.login_url}


async def insert_all(tokens: TokenRepository, rows: Sequence[StoredToken]) -> None:
    """Insert many rows, a few at a time: PostgREST has ten connections, and a call two seconds."""
    for at in range(0, len(rows), 8):
        await asyncio.gather(*(tokens.insert(row) for row in rows[at : at + 8]))


async def rows_by_id(tokens: TokenRepository, row_ids: Sequence[str]) -> dict[str, StoredToken]:
    """Return the rows that exist and decode."""
    found = await tokens.read_back(row_ids)
    return {row_id: row for row_id, row in found.items() if isinstance(row, StoredToken)}


@pytest.fixture(params=["sqlite", "postgres", "supabase"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "vault.db")
    if request.param == "postgres":
        return PostgresStore(request.getfixturevalue("supabase"))
    return SupabaseStore(request.getfixturevalue("supabase"))


@pytest.fixture
async def tokens(store: Store) -> AsyncIterator[TokenRepository]:
    async with store.open() as repository:
        yield repository


def _with_python_types(row: dict[str, Any]) -> dict[str, Any]:
    for name in ("scopes", "metadata"):
        if isinstance(row[name], str):
            row[name] = json.loads(row[name])
    for name in ("expires_at", "created_at", "updated_at", "last_refreshed"):
        if row[name] is not None:
            row[name] = datetime.fromisoformat(row[name])
    if row["is_active"] is not None:
        row["is_active"] = bool(row["is_active"])
    return row


def raw_row(**columns: Any) -> dict[str, Any]:
    """Return the columns of a row as PulsePlan wrote it."""
    return {
        "id": str(uuid4()),
        "user_id": str(uuid4()),
        "provider": "canvas",
        "service_type": "default",
        "access_token": "ciphertext",
        "refresh_token": "",
        "expires_at": "2027-01-01T00:00:00+00:00",
        "scopes": None,
        "created_at": "2025-01-01T00:00:00+00:00",
        "email": None,
        "updated_at": "2025-01-01T00:00:00+00:00",
        "is_active": True,
        "last_refreshed": "2025-01-01T00:00:00+00:00",
        "provider_url": "https://canvas.example.edu",
        "metadata": {},
        "version": 1,
        **columns,
    }


def token(token_id: TokenId | None = None, **changes: Any) -> StoredToken:
    """Return a token to insert."""
    columns: dict[str, Any] = {
        "id": str(uuid4()),
        "token_id": token_id or TokenId(str(uuid4()), "canvas"),
        "access_ciphertext": f"v1:{uuid4().hex}",
        "refresh_ciphertext": None,
        "encryption_scheme": "local:v1",
        "encryption_method": "aes256-gcm-v1",
        "kms_key_id": None,
        "encryption_fallback": False,
        "status": TokenStatus.OK,
        "status_reason": None,
        "expires_at": None,
        "scopes": (),
        "email": None,
        "base_url": None,
        "metadata": {},
        "version": 1,
        "created_at": NOW,
        "updated_at": NOW,
        "last_refreshed": NOW,
        **changes,
    }
    return StoredToken(**columns)
