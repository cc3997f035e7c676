"""`token-vault migrate` on a real PostgreSQL."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.process.home import require_refusal, token_vault
from tests.support.stack.postgres import MIGRATIONS, Database, Postgres
from tests.support.stores.pulseplan_table import with_pulseplan_table
from tests.support.stores.table_inspection import assert_is_the_vaults_table, old_rows

NAMES = sorted(path.stem for path in MIGRATIONS.glob("*.sql"))
Done = subprocess.CompletedProcess[str]


@pytest.fixture
def url(postgres: Postgres, empty_database: Database) -> str:
    return postgres.uri(empty_database.name)


def _migrate(folder: Path, url: str, *words: str) -> Done:
    """Run the command with no setting but the database: a migration job has no key of the vault."""
    return token_vault("migrate", *words, folder=folder, settings={"DATABASE_URL": url})


def _states(folder: Path, url: str) -> dict[str, str]:
    done = _migrate(folder, url, "status", "--json")
    states = {one["name"]: one["state"] for one in json.loads(done.stdout)}
    assert done.returncode == int(set(states.values()) != {"applied"})
    return states


def test_an_empty_database_gets_the_table_and_a_record(tmp_path: Path, empty_database: Database, url: str) -> None:
    assert _states(tmp_path, url) == dict.fromkeys(NAMES, "pending")
    done = _migrate(tmp_path, url)
    assert (done.returncode, done.stdout) == (0, f"Applied {len(NAMES)} files: {NAMES[0]} to {NAMES[-1]}.\n")
    assert_is_the_vaults_table(empty_database)
    assert _states(tmp_path, url) == dict.fromkeys(NAMES, "applied")
    assert [line.split()[:2] for line in _migrate(tmp_path, url, "status").stdout.splitlines()] == [
        [name, "applied"] for name in NAMES
    ]
    assert _migrate(tmp_path, url).stdout == "Nothing to do: every file was applied before.\n"
    assert _migrate(tmp_path, url, "--again").stdout == done.stdout


def test_pulseplans_rows_survive(tmp_path: Path, empty_database: Database, url: str) -> None:
    before = old_rows(with_pulseplan_table(empty_database))
    assert _migrate(tmp_path, url).returncode == 0
    assert old_rows(empty_database) == before


def test_a_run_that_fails_changes_nothing(tmp_path: Path, empty_database: Database, url: str) -> None:
    with_pulseplan_table(empty_database)
    empty_database.sql("alter table public.oauth_tokens drop constraint if exists oauth_tokens_user_id_provider_key")
    empty_database.sql("insert into public.oauth_tokens select gen_random_uuid(), user_id, provider, access_token, "
                       "refresh_token, expires_at, scopes, created_at, email, updated_at, is_active, last_refreshed, "
                       "service_type, provider_url from public.oauth_tokens")  # fmt: skip
    columns = "select attname::text from pg_attribute where attrelid = 'public.oauth_tokens'::regclass order by 1"
    before = empty_database.sql(columns)
    done = _migrate(tmp_path, url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "stored more than once" in done.stderr
    assert "nothing was changed" in done.stderr
    assert empty_database.sql(columns) == before
    assert _states(tmp_path, url) == dict.fromkeys(NAMES, "pending")


def test_files_run_from_the_first_that_has_changed(tmp_path: Path, empty_database: Database, url: str) -> None:
    assert _migrate(tmp_path, url, "--to", "0003").stdout == f"Applied 3 files: {NAMES[0]} to {NAMES[2]}.\n"
    assert list(_states(tmp_path, url).values())[2:4] == ["applied", "pending"]
    empty_database.sql("update token_vault.migrations set sha256 = '' where name = %s", (NAMES[1],))
    assert _states(tmp_path, url)[NAMES[1]] == "changed"
    assert f"{NAMES[1]} to {NAMES[-1]}" in _migrate(tmp_path, url).stdout


def test_of_two_runs_at_once_one_applies_and_one_waits(tmp_path: Path, url: str) -> None:
    with ThreadPoolExecutor() as pool:
        ran = sorted(done.stdout.split()[0] for done in pool.map(lambda _: _migrate(tmp_path, url), range(2)))
    assert ran == ["Applied", "Nothing"]


def test_supabases_roles_cannot_read_the_record(tmp_path: Path, empty_database: Database, url: str) -> None:
    _migrate(tmp_path, url)
    for role in ("anon", "authenticated", "service_role", "token_vault"):
        (row,) = empty_database.sql("select has_schema_privilege(%s, 'token_vault', 'usage') as may", (role,))
        assert row == {"may": False}, role


def test_a_warning_of_the_database_is_shown(tmp_path: Path, empty_database: Database, url: str) -> None:
    with_pulseplan_table(empty_database)
    empty_database.sql("create view public.who as select user_id from public.oauth_tokens")
    done = _migrate(tmp_path, url)
    assert done.returncode == 0
    assert re.search(r"^Warning: .*who", done.stderr, re.MULTILINE)


def test_a_newer_database_is_left_alone(tmp_path: Path, empty_database: Database, url: str) -> None:
    _migrate(tmp_path, url)
    empty_database.sql("insert into token_vault.migrations (name, sha256) values ('9999_later', '')")
    require_refusal(_migrate(tmp_path, url, "--again"), 2, "9999_later", "upgrade")


def test_a_wrong_url_or_file_is_one_line(tmp_path: Path) -> None:
    require_refusal(_migrate(tmp_path, ""), 2, "DATABASE_URL is needed")
    refused = _migrate(tmp_path, "postgresql://owner:s3cr3t-of-the-url@127.0.0.1:1/postgres?sslmode=disable")
    require_refusal(refused, 2, "the database is down or cannot be reached")
    assert "s3cr3t" not in refused.stderr
    unknown = _migrate(tmp_path, "postgresql://owner@127.0.0.1:1/postgres", "--to", "0009")
    assert unknown.returncode == 2
    assert "is none of 0001_create_oauth_tokens" in unknown.stderr
