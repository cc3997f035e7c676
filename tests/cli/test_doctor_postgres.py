"""`token-vault doctor` on the PostgreSQL store."""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

from tests.support.process.home import new_home, token_vault
from tests.support.stack.supabase import SupabaseStack


def _doctor(folder: Path, url: str) -> CompletedProcess[str]:
    home = new_home(folder, TOKEN_STORE="postgres", DATABASE_URL=url)
    return token_vault("doctor", folder=home.folder, settings=home.settings)


def test_the_vaults_role_has_no_finding_and_a_superuser_has(tmp_path: Path, supabase: SupabaseStack) -> None:
    least = _doctor(tmp_path, supabase.login_url)
    assert least.returncode == 0, least.stdout
    assert "may use oauth_tokens and no other table" in least.stdout
    assert "the connection is direct" in least.stdout
    assert "superuser" not in least.stdout
    assert "lose the last acknowledged writes: set to on synchronous_commit, fsync" in least.stdout, "for faster tests"
    most = supabase.postgres.uri(supabase.database.name)
    found = _doctor(tmp_path, most)
    assert "warn  store         the user postgres of DATABASE_URL is a superuser" in found.stdout


def test_privileges_beyond_the_table_are_findings(tmp_path: Path, supabase: SupabaseStack) -> None:
    supabase.sql("create table public.grades (n int)")
    supabase.sql("grant select on public.grades to supabase_vault_login")
    supabase.sql("revoke update on public.oauth_tokens from token_vault")
    try:
        found = _doctor(tmp_path, supabase.login_url)
    finally:
        supabase.sql("drop table public.grades")
        supabase.sql("grant update on public.oauth_tokens to token_vault")
    assert found.returncode == 1
    assert "may not UPDATE on oauth_tokens" in found.stdout
    assert "may use 1 more tables (grades)" in found.stdout


def test_a_database_that_cannot_be_reached_is_one_finding(tmp_path: Path) -> None:
    url = "postgresql://vault:s3cr3t-of-the-url@127.0.0.1:1/postgres"
    found = _doctor(tmp_path, url)
    assert found.returncode == 1
    assert "store_unavailable" in found.stdout
    assert "s3cr3t" not in found.stdout + found.stderr
