"""Inspect public.oauth_tokens, and assert the definition that the migrations must give it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import DictRow

from tests.support.stack.postgres import MIGRATIONS, Database, Postgres

FILES = sorted(MIGRATIONS.glob("*.sql"))

# type, nullability and default of each column
COLUMNS = {
    "id": ("uuid", "NO", "gen_random_uuid()"),
    "user_id": ("uuid", "NO", None),
    "provider": ("text", "NO", None),
    "access_token": ("text", "NO", None),
    "refresh_token": ("text", "YES", None),
    "expires_at": ("timestamp with time zone", "YES", None),
    "scopes": ("ARRAY", "YES", None),
    "created_at": ("timestamp with time zone", "YES", "now()"),
    "email": ("text", "YES", None),
    "updated_at": ("timestamp with time zone", "YES", "now()"),
    "is_active": ("boolean", "YES", "true"),
    "last_refreshed": ("timestamp with time zone", "NO", "now()"),
    "service_type": ("text", "NO", "'default'::text"),
    "provider_url": ("text", "YES", None),
    "metadata": ("jsonb", "NO", "'{}'::jsonb"),
    "version": ("bigint", "NO", "(floor((EXTRACT(epoch FROM clock_timestamp()) * (1000)::numeric)))::bigint"),
    "encryption_scheme": ("text", "YES", None),
    "refresh_token_expires_at": ("timestamp with time zone", "YES", None),
    "refresh_generation": ("bigint", "NO", "0"),
    "refresh_holder": ("uuid", "YES", None),
    "refresh_leased_until": ("timestamp with time zone", "YES", None),
    "refresh_attempts": ("integer", "NO", "0"),
    "refresh_retry_at": ("timestamp with time zone", "YES", None),
    "refresh_failure": ("text", "YES", None),
}


INSERT: LiteralString = (
    "insert into public.oauth_tokens (user_id, provider, service_type, access_token)"
    " values (%s, %s, %s, 'v1:new') returning id, refresh_token, expires_at, metadata, version,"
    " encryption_scheme, is_active, created_at = now() and updated_at = now() and last_refreshed = now() as is_fresh"
)


# every change of a row's old columns changes this text
OLD_ROWS: LiteralString = """
select row(
    id, user_id, provider, access_token, refresh_token, expires_at, scopes, created_at, email,
    updated_at, is_active, last_refreshed, service_type, provider_url
)::text as old
from public.oauth_tokens
order by id
"""


def migrate_each_file_twice(database: Database) -> None:
    for path in FILES:
        database.run_file(path)
        once = definition(database)
        database.run_file(path)
        assert definition(database) == once
    final = definition(database)
    database.migrate()
    assert definition(database) == final


@contextmanager
def acting_as(database: Database, role: str) -> Iterator[psycopg.Connection[DictRow]]:
    """Act as this role during the block, whose changes are rolled back."""
    with database.connection.transaction(force_rollback=True):
        database.connection.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
        yield database.connection


def psql(postgres: Postgres, database: Database, path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(postgres.psql), postgres.uri(database.name), "--no-psqlrc", *options, "--file", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def old_rows(database: Database) -> list[dict[str, Any]]:
    return database.sql(OLD_ROWS)


def metadata(database: Database) -> list[Any]:
    """Return each row's metadata, an empty object if it is missing."""
    if "metadata" not in columns(database):
        return [{} for _ in old_rows(database)]
    rows = database.sql("select coalesce(metadata::jsonb, '{}') as found from public.oauth_tokens order by id")
    return [row["found"] for row in rows]


def columns(database: Database) -> dict[str, tuple[str, str, str | None]]:
    return {
        row["column_name"]: (row["data_type"], row["is_nullable"], row["column_default"])
        for row in database.sql(
            "select column_name, data_type, is_nullable, column_default"
            " from information_schema.columns where table_schema = 'public' and table_name = 'oauth_tokens'"
        )
    }


def constraints(database: Database, kind: str) -> dict[str, str]:
    """Return the constraints of a type: c for checks, f for foreign keys, u for unique."""
    rows = database.sql(
        "select conname, pg_get_constraintdef(oid) as definition from pg_constraint"
        " where conrelid = 'public.oauth_tokens'::regclass and contype = %s order by conname",
        (kind,),
    )
    return {row["conname"]: row["definition"] for row in rows}


def indexes(database: Database) -> list[str]:
    rows = database.sql("select indexdef from pg_indexes where tablename = 'oauth_tokens' order by indexname")
    return [row["indexdef"] for row in rows]


def policies(database: Database) -> list[dict[str, Any]]:
    return database.sql("select policyname from pg_policies where tablename = 'oauth_tokens'")


def triggers(database: Database) -> set[str]:
    found = database.sql("select tgname from pg_trigger where not tgisinternal")
    return {str(one["tgname"]) for one in found}


def access_findings(database: Database) -> list[tuple[str, str]]:
    """Return kind and text of each route past the vault that the database itself reports."""
    [row] = database.sql("select public.token_vault_access_findings() as found")
    return [(each["kind"], each["text"]) for each in row["found"]]


def definition(database: Database) -> dict[str, object]:
    """Return the table's whole definition, without its rows."""
    return {
        "columns": columns(database),
        "checks": constraints(database, "c"),
        "foreign keys": constraints(database, "f"),
        "uniques": constraints(database, "u"),
        "indexes": indexes(database),
        "policies": policies(database),
        "triggers": triggers(database),
        "table": database.sql(
            "select relrowsecurity, relacl::text, relfilenode from pg_class where oid = 'public.oauth_tokens'::regclass"
        ),
    }


def assert_is_the_vaults_table(database: Database) -> None:
    assert columns(database) == COLUMNS
    assert constraints(database, "c") == {
        "oauth_tokens_provider_pattern": "CHECK ((provider ~ '^[a-z][a-z0-9_-]{0,31}$'::text))"
    }
    uniques = database.sql(
        "select (select array_agg(attname::text order by attname) from pg_attribute"
        " where attrelid = indrelid and attnum = any (indkey[0:indnkeyatts - 1])) as columns"
        " from pg_index where indrelid = 'public.oauth_tokens'::regclass and indisunique"
        " and indisvalid and indimmediate and indpred is null order by 1"
    )
    assert [row["columns"] for row in uniques] == [["id"], ["provider", "service_type", "user_id"]]
    assert any("(encryption_scheme, id)" in index for index in indexes(database))
    assert policies(database) == []
    assert database.sql("select relrowsecurity from pg_class where oid = 'public.oauth_tokens'::regclass") == [
        {"relrowsecurity": True}
    ]
