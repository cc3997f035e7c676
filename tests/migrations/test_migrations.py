"""The migrations create the vault's table, or change PulsePlan's table in place, and lose nothing."""

import time
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tests.support.stack.postgres import Database, Postgres
from tests.support.stores.pulseplan_table import TRIGGER, USER, VARIANTS, Variant, with_pulseplan_table
from tests.support.stores.table_inspection import (
    FILES,
    INSERT,
    access_findings,
    acting_as,
    assert_is_the_vaults_table,
    constraints,
    metadata,
    migrate_each_file_twice,
    old_rows,
    psql,
    triggers,
)


@pytest.fixture
def plain_pulseplan(empty_database: Database) -> Database:
    """PulsePlan's database with the table as documented."""
    return with_pulseplan_table(empty_database)


def assert_accepts_valid_rows(database: Database) -> None:
    for provider, service_type in [
        ("google", "gmail"),
        ("google", "drive"),
        ("notion2", "default"),
        ("a", "default"),
        ("a" * 32, "default"),
        ("x_-9", "default"),
    ]:
        (row,) = database.sql(INSERT, (USER, provider, service_type))
        assert row.pop("id") is not None
        assert abs(row.pop("version") / 1000 - time.time()) < 600, "the milliseconds since 1970"
        assert row == {
            "refresh_token": None,
            "expires_at": None,
            "metadata": {},
            "encryption_scheme": None,
            "is_active": True,
            "is_fresh": True,
        }
    (row,) = database.sql(
        "insert into public.oauth_tokens (user_id, provider, access_token) values (%s, 'apple', '') "
        "on conflict (user_id, provider, service_type) do nothing returning service_type",
        (USER,),
    )
    assert row == {"service_type": "default"}


def assert_rejects_invalid_rows(database: Database) -> None:
    for provider in ("Bad Provider", "Google", "", "1password", "_x", "canvas\n", "é", "a" * 33):
        with pytest.raises(psycopg.errors.CheckViolation):
            database.sql(INSERT, (USER, provider, "default"))
    with pytest.raises(psycopg.errors.UniqueViolation):
        database.sql(INSERT, (USER, "google", "gmail"))
    for column in ("service_type", "metadata", "version", "access_token"):
        with pytest.raises(psycopg.errors.NotNullViolation):
            database.connection.execute(
                sql.SQL("update public.oauth_tokens set {} = null").format(sql.Identifier(column))
            )


def assert_only_the_service_sees_rows(database: Database) -> None:
    rows = len(database.sql("select id from public.oauth_tokens"))
    assert rows > 0
    for role in ("service_role", "token_vault"):
        with acting_as(database, role) as connection:
            assert len(connection.execute("select id from public.oauth_tokens").fetchall()) == rows
            assert connection.execute("select public.token_vault_sees_every_row() as answer").fetchall() == [
                {"answer": True}
            ]
            assert connection.execute("update public.oauth_tokens set version = version").rowcount == rows
    for role in ("anon", "authenticated"):
        for statement in (
            b"select id from public.oauth_tokens",
            b"select public.token_vault_sees_every_row()",
            b"update public.oauth_tokens set version = version",
        ):
            with acting_as(database, role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_an_empty_database_gets_the_table(empty_database: Database) -> None:
    migrate_each_file_twice(empty_database)

    assert_is_the_vaults_table(empty_database)
    assert constraints(empty_database, "f") == {}
    assert_accepts_valid_rows(empty_database)
    assert_rejects_invalid_rows(empty_database)
    assert_only_the_service_sees_rows(empty_database)


def test_plain_postgresql_works_without_supabases_roles(postgres: Postgres) -> None:
    with postgres.new_database(supabase_roles=False) as database:
        connection = database.connection
        # Roles belong to the whole server, and other tests may have created them. They are renamed until the
        # transaction is rolled back.
        with connection.transaction(force_rollback=True):
            for role in ("anon", "authenticated", "service_role"):
                if database.sql("select rolname from pg_roles where rolname = %s", (role,)):
                    connection.execute(
                        sql.SQL("alter role {} rename to {}").format(
                            sql.Identifier(role), sql.Identifier(f"not_{role}")
                        )
                    )
            migrate_each_file_twice(database)
            assert_is_the_vaults_table(database)
            assert database.sql("select public.token_vault_sees_every_row() as answer") == [{"answer": True}]


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_pulseplans_table_becomes_the_vaults_and_keeps_its_rows(empty_database: Database, variant: Variant) -> None:
    database = with_pulseplan_table(empty_database, variant.sql)
    rows_before, metadata_before = old_rows(database), metadata(database)
    foreign_keys_before, triggers_before = constraints(database, "f"), triggers(database)
    assert len(rows_before) == 3

    migrate_each_file_twice(database)
    places = row_places(database)
    database.migrate()

    assert row_places(database) == places, "another run rewrites no row"
    assert old_rows(database) == rows_before
    assert metadata(database) == metadata_before
    assert constraints(database, "f") == foreign_keys_before
    assert triggers(database) == triggers_before | {"token_vault_mark_foreign_write"}
    new = database.sql("select distinct version, encryption_scheme from public.oauth_tokens")
    assert new == [{"version": 1, "encryption_scheme": None}]
    assert_is_the_vaults_table(database)
    assert [kind for kind, _ in access_findings(database)] == ["trigger"] * (TRIGGER in variant.sql)
    assert_accepts_valid_rows(database)
    assert_rejects_invalid_rows(database)
    assert_only_the_service_sees_rows(database)


def row_places(database: Database) -> list[dict[str, object]]:
    return database.sql("select id, ctid::text, xmin::text from public.oauth_tokens order by id")


def test_the_service_role_gets_its_privileges_without_default_grants(plain_pulseplan: Database) -> None:
    plain_pulseplan.connection.execute(
        "revoke all on public.oauth_tokens from service_role;"
        "alter default privileges revoke execute on functions from public;"
        "alter default privileges in schema public revoke execute on functions from anon, authenticated, service_role"
    )

    migrate_each_file_twice(plain_pulseplan)

    assert_only_the_service_sees_rows(plain_pulseplan)
    with acting_as(plain_pulseplan, "service_role"):
        (row,) = plain_pulseplan.sql(INSERT, (USER, "apple", "default"))
        plain_pulseplan.sql("delete from public.oauth_tokens where id = %s", (row["id"],))
        assert len(old_rows(plain_pulseplan)) == 3


@pytest.mark.parametrize("path", FILES, ids=[path.name for path in FILES])
def test_each_file_makes_postgrest_reload_the_schema(empty_database: Database, path: Path) -> None:
    empty_database.migrate()
    empty_database.sql("listen pgrst")

    empty_database.run_file(path)

    payloads = [each.payload for each in empty_database.connection.notifies(timeout=30, stop_after=1)]
    assert payloads == ["reload schema"]


def test_a_check_on_other_columns_too_is_kept(plain_pulseplan: Database) -> None:
    plain_pulseplan.sql(
        "alter table public.oauth_tokens add constraint canvas_has_url"
        " check (provider <> 'canvas' or provider_url is not null)"
    )

    migrate_each_file_twice(plain_pulseplan)

    assert set(constraints(plain_pulseplan, "c")) == {"canvas_has_url", "oauth_tokens_provider_pattern"}


def test_the_readmes_psql_commands_work(plain_pulseplan: Database, postgres: Postgres) -> None:
    for path in FILES * 2:
        run = psql(postgres, plain_pulseplan, path, "--single-transaction", "--set", "ON_ERROR_STOP=1")
        assert run.returncode == 0, run.stderr

    assert_is_the_vaults_table(plain_pulseplan)
