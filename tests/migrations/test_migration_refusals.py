"""A migration that cannot finish says why and loses nothing."""

import psycopg
import pytest

from tests.support.stack.postgres import Database, Postgres
from tests.support.stores.pulseplan_table import USER, with_pulseplan_table
from tests.support.stores.table_inspection import (
    FILES,
    INSERT,
    constraints,
    definition,
    migrate_each_file_twice,
    old_rows,
    psql,
)


@pytest.fixture
def plain_pulseplan(empty_database: Database) -> Database:
    return with_pulseplan_table(empty_database)


def test_rows_with_an_invalid_provider_are_kept_and_reported(plain_pulseplan: Database) -> None:
    warnings: list[str] = []
    plain_pulseplan.connection.add_notice_handler(
        lambda notice: warnings.append(notice.message_primary or "") if notice.severity == "WARNING" else None
    )
    plain_pulseplan.sql("alter table public.oauth_tokens drop constraint valid_provider")
    plain_pulseplan.sql("update public.oauth_tokens set provider = 'Old Notion' where provider = 'notion'")
    before = old_rows(plain_pulseplan)

    migrate_each_file_twice(plain_pulseplan)

    assert old_rows(plain_pulseplan) == before
    assert warnings
    assert all("provider that the vault cannot address" in warning for warning in warnings)
    assert "NOT VALID" in constraints(plain_pulseplan, "c")["oauth_tokens_provider_pattern"]
    with pytest.raises(psycopg.errors.CheckViolation):
        plain_pulseplan.sql(INSERT, (USER, "Old Notion", "default"))

    plain_pulseplan.sql("update public.oauth_tokens set provider = 'notion' where provider = 'Old Notion'")
    plain_pulseplan.migrate()
    assert "NOT VALID" not in constraints(plain_pulseplan, "c")["oauth_tokens_provider_pattern"]


@pytest.fixture
def with_duplicates(plain_pulseplan: Database) -> Database:
    """Add duplicates: two tokens in five rows."""
    for token, copies in (("google", 2), ("canvas", 1)):
        for _ in range(copies):
            plain_pulseplan.sql(
                "insert into public.oauth_tokens (user_id, provider, access_token, refresh_token,"
                " expires_at, last_refreshed, service_type) select user_id, provider, 'other', '',"
                " now(), now(), service_type from public.oauth_tokens where provider = %s limit 1",
                (token,),
            )
    return plain_pulseplan


def test_duplicates_stop_the_migration_with_a_diagnosis(with_duplicates: Database) -> None:
    with_duplicates.run_file(FILES[0])
    rows_before, definition_before = old_rows(with_duplicates), definition(with_duplicates)

    with pytest.raises(psycopg.errors.UniqueViolation) as failure:
        with_duplicates.run_file(FILES[1])

    diagnosis = failure.value.diag
    assert "2 tokens that are stored more than once (5 rows" in str(diagnosis.message_primary)
    assert diagnosis.message_detail == "Nothing was changed."
    assert old_rows(with_duplicates) == rows_before
    assert definition(with_duplicates) == definition_before


def test_duplicates_change_nothing_if_psql_does_not_stop(with_duplicates: Database, postgres: Postgres) -> None:
    with_duplicates.run_file(FILES[0])
    rows_before, definition_before = old_rows(with_duplicates), definition(with_duplicates)

    run = psql(postgres, with_duplicates, FILES[1])

    assert "2 tokens that are stored more than once (5 rows" in run.stderr
    assert old_rows(with_duplicates) == rows_before
    assert definition(with_duplicates) == definition_before


def test_a_locked_table_is_given_up_after_the_lock_timeout(plain_pulseplan: Database, postgres: Postgres) -> None:
    definition_before = definition(plain_pulseplan)
    plain_pulseplan.sql("set lock_timeout = '200ms'")
    with postgres.connect(plain_pulseplan.name) as report, report.connection.transaction():
        report.sql("select id from public.oauth_tokens")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            plain_pulseplan.run_file(FILES[1])

    assert definition(plain_pulseplan) == definition_before


def test_a_session_without_a_lock_timeout_gets_one(plain_pulseplan: Database) -> None:
    plain_pulseplan.sql("set lock_timeout = 0")
    with plain_pulseplan.connection.transaction():
        plain_pulseplan.run_file(FILES[1])
        assert plain_pulseplan.sql("show lock_timeout") == [{"lock_timeout": "10s"}]

    assert plain_pulseplan.sql("show lock_timeout") == [{"lock_timeout": "0"}]


def test_a_policy_on_metadata_stops_the_change_of_its_type(plain_pulseplan: Database) -> None:
    plain_pulseplan.connection.execute(
        "alter table public.oauth_tokens add column metadata json;"
        "create policy active on public.oauth_tokens using (metadata ->> 'status' = 'ok')"
    )
    definition_before = definition(plain_pulseplan)

    with pytest.raises(psycopg.errors.FeatureNotSupported) as failure:
        plain_pulseplan.run_file(FILES[1])

    assert "policy active" in str(failure.value.diag.message_detail)
    assert definition(plain_pulseplan) == definition_before
