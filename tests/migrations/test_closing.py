"""The last migration alone takes something away, and what it takes can be restored."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import LiteralString

import pytest

from tests.support.stack.postgres import MIGRATIONS, Database, Postgres
from tests.support.stores.pulseplan_table import POLICIES, USER, with_pulseplan_table
from tests.support.stores.table_inspection import FILES, acting_as, assert_is_the_vaults_table, definition

UNDO = MIGRATIONS / "undo" / "print_undo.sql"
CLOSING = FILES[-1]
OPEN: LiteralString = (
    POLICIES + "alter table public.oauth_tokens add unique (user_id, provider);"
    'create policy "Restrictive One" on public.oauth_tokens as restrictive for update to anon, authenticated'
    " using (true) with check (provider <> 'x');"
    "create unique index again on public.oauth_tokens (user_id, provider) where is_active;"
    "grant all on public.oauth_tokens to anon, authenticated, service_role;"
    "grant select on public.oauth_tokens to public; grant update (email) on public.oauth_tokens to anon;"
)
UPSERT: LiteralString = """
insert into public.oauth_tokens (user_id, provider, access_token, refresh_token, expires_at, last_refreshed,
    service_type)
values (%s, 'google', 'v1:new', 'v1:new', now(), now(), 'calendar')
on conflict (user_id, provider) do update set access_token = excluded.access_token returning access_token
"""


@pytest.fixture(params=["", "alter table public.oauth_tokens enable row level security;"], ids=["rls off", "rls on"])
def pulseplan(empty_database: Database, request: pytest.FixtureRequest) -> Database:
    return with_pulseplan_table(empty_database, OPEN + request.param)


def test_pulseplans_statements_work_until_the_last_file(pulseplan: Database) -> None:
    with acting_as(pulseplan, "authenticated") as browser:
        readable = len(browser.execute("select id from public.oauth_tokens").fetchall())
    for path in FILES[:-1]:
        pulseplan.run_file(path)
        with acting_as(pulseplan, "service_role"):
            assert pulseplan.sql(UPSERT, (USER,)) == [{"access_token": "v1:new"}], path.name
        with acting_as(pulseplan, "authenticated") as browser:
            assert len(browser.execute("select id from public.oauth_tokens").fetchall()) == readable, path.name


def test_what_the_last_file_takes_away_is_restored(pulseplan: Database, postgres: Postgres, tmp_path: Path) -> None:
    for path in FILES[:-1]:
        pulseplan.run_file(path)
    before = _definition(pulseplan)
    saved = tmp_path / "undo.sql"
    options = ["--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--file", str(UNDO), "--output", str(saved)]
    subprocess.run([str(postgres.psql), postgres.uri(pulseplan.name), *options], check=True)

    pulseplan.run_file(CLOSING)
    assert_is_the_vaults_table(pulseplan)
    pulseplan.run_file(saved)

    assert _definition(pulseplan) == before


def _definition(database: Database) -> dict[str, object]:
    """Return the definition with whole policies, and with privileges in one order."""
    [table] = database.sql(
        "select relrowsecurity, (select array_agg(acl::text order by acl::text) from unnest(relacl) as acl) as acl"
        " from pg_class where oid = 'public.oauth_tokens'::regclass"
    )
    policies = database.sql("select * from pg_policies where tablename = 'oauth_tokens' order by policyname")
    columns = database.sql(
        "select attname, attacl::text from pg_attribute"
        " where attrelid = 'public.oauth_tokens'::regclass and attacl is not null order by attname"
    )
    return definition(database) | {"table": table, "policies": policies, "column privileges": columns}
