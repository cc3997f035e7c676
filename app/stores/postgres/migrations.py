"""Apply the files of `migrations/` to a PostgreSQL database, and record which were applied.

All files of one run are one transaction, so a run changes everything or nothing, and it works through a pooler in
transaction mode. A lock of that transaction lets a second run wait and then find nothing to do. Each file may run
twice, so a database that was migrated with `psql` is only recorded.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import asyncpg

from app.config.database_url import DatabaseUrl, DatabaseUrlError
from app.stores.postgres.errors import FAILURES, meaning_at_connect

FOLDER: Final = Path(__file__).parents[2] / "migrations"
_CONNECT_SECONDS: Final = 10.0
_LOCK: Final = 0x746F6B656E  # "token"; any number that no other program of the database uses
_LOCK_NOT_AVAILABLE: Final = "55P03"
# A schema of its own, because PostgREST serves `public` and Supabase grants each table there to everybody.
_RECORD: Final = """
create schema if not exists token_vault;
create table if not exists token_vault.migrations (
    name text primary key,
    sha256 text not null,
    applied_at timestamptz not null default now()
);
revoke all on schema token_vault from public;
"""
_HAS_RECORD: Final = "select pg_catalog.to_regclass('token_vault.migrations') is not null"


class MigrationError(Exception):
    """Why nothing was changed, in one or two sentences."""


class MigrationState(StrEnum):
    """What the record says of a file. `CHANGED`: the file differs from the one that was applied."""

    APPLIED = "applied"
    CHANGED = "changed"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of `migrations/`."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RecordedMigration:
    """One file and what the database's record says of it; `applied_at` is `None` if it is pending."""

    migration: Migration
    state: MigrationState
    applied_at: datetime | None


def bundled_migrations() -> list[Migration]:
    """Return the files that belong to this version of the vault, in order."""
    return [Migration(path.stem, path.read_text("utf-8")) for path in sorted(FOLDER.glob("*.sql"))]


async def recorded_migrations(url: DatabaseUrl, migrations: Sequence[Migration]) -> list[RecordedMigration]:
    """Compare the files with the database's record; raises `MigrationError` or a `StoreError`."""
    async with _connection(url) as connection:
        return await _recorded(connection, migrations)


async def apply_migrations(
    url: DatabaseUrl,
    migrations: Sequence[Migration],
    *,
    last: Migration,
    again: bool = False,
    on_start: Callable[[str], None],
    on_warning: Callable[[str], None],
) -> list[str]:
    """Run the files from the first that is pending or changed, or all `again`, through `last`; return their names.

    A file that was applied before runs again if an earlier one runs, because later files grant what earlier ones
    create. `on_start` gets the name of each file before it runs, `on_warning` each warning of the database. Raises
    `MigrationError` or a `StoreError`; then nothing has changed.
    """
    async with _connection(url) as connection:
        connection.add_log_listener(lambda _, message: _pass_on(message, on_warning))
        async with connection.transaction():
            await connection.execute("select pg_catalog.pg_advisory_xact_lock($1)", _LOCK)
            recorded = (await _recorded(connection, migrations))[: migrations.index(last) + 1]
            due = [one.migration for one in recorded] if again else _from_first_due(recorded)
            if not due:
                return []
            await connection.execute(_RECORD)
            for migration in due:
                on_start(migration.name)
                await _apply(connection, migration)
    return [migration.name for migration in due]


def _from_first_due(recorded: Sequence[RecordedMigration]) -> list[Migration]:
    first = next((at for at, one in enumerate(recorded) if one.state is not MigrationState.APPLIED), len(recorded))
    return [one.migration for one in recorded[first:]]


async def _apply(connection: Any, migration: Migration) -> None:  # noqa: ANN401  asyncpg has no types
    try:
        await connection.execute(migration.sql)
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{migration.name}: {_reason(error)}; nothing was changed") from None
    await connection.execute(
        "insert into token_vault.migrations (name, sha256) values ($1, $2) "
        "on conflict (name) do update set sha256 = excluded.sha256, applied_at = excluded.applied_at",
        migration.name,
        migration.sha256,
    )


async def _recorded(connection: Any, migrations: Sequence[Migration]) -> list[RecordedMigration]:  # noqa: ANN401
    rows = []
    if await connection.fetchval(_HAS_RECORD):
        rows = await connection.fetch("select name, sha256, applied_at from token_vault.migrations")
    applied = {row["name"]: row for row in rows}
    unknown = sorted(applied.keys() - {migration.name for migration in migrations})
    if unknown:
        raise MigrationError(
            f"the database has {unknown[-1]}, which this version of the vault does not have: upgrade it"
        )
    return [_compared(migration, applied.get(migration.name)) for migration in migrations]


def _compared(migration: Migration, row: Any) -> RecordedMigration:  # noqa: ANN401  asyncpg has no types
    if row is None:
        return RecordedMigration(migration, MigrationState.PENDING, None)
    same = row["sha256"] == migration.sha256
    return RecordedMigration(migration, MigrationState.APPLIED if same else MigrationState.CHANGED, row["applied_at"])


@asynccontextmanager
async def _connection(url: DatabaseUrl) -> AsyncIterator[Any]:
    try:
        connection = await asyncpg.connect(
            url.text,
            ssl=url.tls(),
            target_session_attrs=url.target_session_attrs,
            timeout=_CONNECT_SECONDS,
            statement_cache_size=0,  # a pooler in transaction mode keeps no prepared statement
        )
    except DatabaseUrlError as error:
        raise MigrationError(f"DATABASE_URL: {error}") from None
    except FAILURES as error:
        raise meaning_at_connect(error) from None
    try:
        yield connection
    except asyncpg.PostgresError as error:
        raise MigrationError(f"{_reason(error)}; nothing was changed") from None
    except FAILURES:
        raise MigrationError(
            "the connection to the database was lost: run `token-vault migrate status` to see the outcome"
        ) from None
    finally:
        connection.terminate()


def _reason(error: asyncpg.PostgresError) -> str:
    """Return the server's message and hint. Its detail may quote a row, and is left out."""
    if error.sqlstate == _LOCK_NOT_AVAILABLE:
        return "oauth_tokens is in use; run it again at a quieter time, or with a longer lock_timeout"
    return "; ".join(part for part in (error.args[0] if error.args else "", getattr(error, "hint", None)) if part)


def _pass_on(message: Any, on_warning: Callable[[str], None]) -> None:  # noqa: ANN401  asyncpg has no types
    if message.severity_en == "WARNING":
        on_warning("; ".join(part for part in (message.message, message.hint) if part))
