"""`token-vault doctor`: findings, exit codes and secrets."""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.process.home import Home, files_of, initialised_home, new_home, new_master_key, token_vault
from tests.support.process.key_commands import home_with_key_file, write_key_file
from tests.support.process.server import Serve
from tests.support.rewrap.stored_rows import SqliteRows, SupabaseRows, local_encryption, pulseplan_rows, sealed_row
from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SqliteStore
from tests.support.stores.unreadable import damage, damages_of

SUBJECTS = ("settings", "service keys", "encryption", "store", "audit")
DATABASE = "data/vault.db"


def _doctor(home: Home) -> CompletedProcess[str]:
    return token_vault("doctor", folder=home.folder, settings=home.settings)


def _findings(done: CompletedProcess[str]) -> dict[str, tuple[str, str]]:
    """Return the severity and the text of each subject's last finding, which is its worst."""
    assert done.stderr == ""
    found = {}
    for line in done.stdout.splitlines():
        state, rest = line[:6].strip(), line[6:]
        subject = next(each for each in SUBJECTS if rest.startswith(each))
        found[subject] = (state, rest.removeprefix(subject).strip())
    return found


def _states(done: CompletedProcess[str]) -> dict[str, str]:
    return {subject: state for subject, (state, _) in _findings(done).items()}


def _require_failure(done: CompletedProcess[str], subject: str, *words: str) -> None:
    """Require that this subject alone has failed, with each of the words in its text."""
    assert done.returncode == 1
    assert [each for each, state in _states(done).items() if state == "FAIL"] == [subject]
    said = _findings(done)[subject][1]
    assert [word for word in words if word not in said] == []


def _home_with_database(folder: Path) -> Home:
    SqliteRows(folder / DATABASE).insert([sealed_row(local_encryption(1))])
    return new_home(folder)


def test_the_findings_as_json_are_those_of_the_lines(tmp_path: Path) -> None:
    home = new_home(tmp_path)
    lines = _doctor(home)
    done = token_vault("doctor", "--json", folder=home.folder, settings=home.settings)
    assert (done.returncode, done.stderr) == (lines.returncode, "")
    found = [(one["severity"], one["subject"], one["text"]) for one in json.loads(done.stdout)]
    assert lines.stdout.splitlines() == [f"{state:<4}  {subject:<12}  {text}" for state, subject, text in found]


def test_doctor_finds_nothing_wrong_after_init_and_changes_nothing(tmp_path: Path) -> None:
    home = initialised_home(tmp_path)
    before = files_of(tmp_path)
    done = _doctor(home)
    assert done.returncode == 0
    assert _states(done) == dict.fromkeys(SUBJECTS, "ok")
    assert files_of(tmp_path) == before


def test_doctor_finds_nothing_wrong_while_the_vault_runs(tmp_path: Path, serve: Serve) -> None:
    home = initialised_home(tmp_path)
    with serve(home):
        done = _doctor(home)
    assert done.returncode == 0
    assert _states(done) == dict.fromkeys(SUBJECTS, "ok")


def test_a_broken_key_file_is_found(tmp_path: Path) -> None:
    home = home_with_key_file(tmp_path)
    write_key_file(home, "[")
    _require_failure(_doctor(home), "service keys", "invalid", "none of its keys is valid")


def test_a_missing_key_file_is_found(tmp_path: Path) -> None:
    _require_failure(_doctor(home_with_key_file(tmp_path)), "service keys", "cannot be read")


@pytest.mark.parametrize(
    ("at", "garbage"),
    [(0, b"not SQLite"), (16, b"\xff" * 64), (4096, b"\xff" * 4096)],
    ids=["magic", "header", "table"],
)
def test_a_corrupted_database_is_found(tmp_path: Path, at: int, garbage: bytes) -> None:
    home = _home_with_database(tmp_path)
    with (tmp_path / DATABASE).open("r+b") as file:
        file.seek(at)
        file.write(garbage)
    _require_failure(_doctor(home), "store", "not an intact SQLite database")


def test_a_truncated_database_is_found(tmp_path: Path) -> None:
    home = _home_with_database(tmp_path)
    with (tmp_path / DATABASE).open("r+b") as file:
        file.truncate(4096)
    _require_failure(_doctor(home), "store", "not an intact SQLite database")


def test_rows_that_do_not_decode_stop_neither_doctor_nor_status(tmp_path: Path) -> None:
    rows = [sealed_row(local_encryption(1)) for _ in range(len(damages_of(SqliteStore(tmp_path / DATABASE))))]
    SqliteRows(tmp_path / DATABASE).insert(rows)
    store, home = SqliteStore(tmp_path / DATABASE), new_home(tmp_path)
    for row, (column, value) in zip(rows, damages_of(store).values(), strict=True):
        damage(store, row["user_id"], "canvas", column, value)
    assert _states(_doctor(home))["store"] == "ok"
    status = token_vault("encryption", "status", folder=home.folder, settings=home.settings)
    assert (status.returncode, status.stderr) == (0, "")
    assert re.search(rf"\b{len(rows)} +total", status.stdout)


def test_a_table_without_the_vaults_columns_is_found(tmp_path: Path) -> None:
    home = new_home(tmp_path)
    (tmp_path / "data").mkdir()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute("CREATE TABLE oauth_tokens (id TEXT, user_id TEXT, encryption_scheme TEXT)")
    _require_failure(_doctor(home), "store", "columns")


@pytest.mark.parametrize(
    ("kind", "allowed", "warned"),
    [
        ("missing", "true", "set it to false"),
        ("bound", "true", "set it to false"),
        ("legacy", "true", None),
        ("legacy", "false", "cannot be read"),
        ("bound", "false", None),
        ("missing", "false", None),
    ],
)
def test_a_legacy_window_that_does_not_suit_the_rows_is_found(
    tmp_path: Path, kind: str, allowed: str, warned: str | None
) -> None:
    if kind != "missing":
        row = sealed_row(local_encryption(1)) if kind == "bound" else pulseplan_rows()[0][0]
        SqliteRows(tmp_path / DATABASE).insert([row])
    done = _doctor(new_home(tmp_path, ALLOW_LEGACY_FORMATS=allowed))
    found = [line for line in done.stdout.splitlines() if "PulsePlan" in line]
    assert [line[:4] for line in found] == ([] if warned is None else ["warn"])
    assert [line for line in found if warned is not None and warned not in line] == []


@pytest.mark.parametrize("kind", ["bound", "legacy"])
def test_the_legacy_window_is_compared_with_rows_on_supabase(
    supabase: SupabaseStack, tmp_path: Path, kind: str
) -> None:
    rows = SupabaseRows(supabase)
    rows.insert([sealed_row(local_encryption(1)) if kind == "bound" else pulseplan_rows()[0][0]])
    done = _doctor(new_home(tmp_path, **rows.settings()))
    assert ("no row needs PulsePlan's formats" in done.stdout) is (kind == "bound")


@pytest.mark.parametrize("name", ["PORT", "TOKEN_STORE", "TOKEN_ENCRYPTION_KEY", "SUPABASE_URL"])
def test_a_wrong_setting_is_exit_code_2(tmp_path: Path, name: str) -> None:
    home = new_home(tmp_path, **{name: "sekrit"})
    done = _doctor(home)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert name in line
    assert "sekrit" not in line


def test_an_unwise_setting_is_a_warning(tmp_path: Path) -> None:
    home = new_home(tmp_path, TOKEN_ENCRYPTION_KEY=new_master_key(16), SERVICE_KEYS="")
    (tmp_path / ".env").write_text("LOG_LEVEL=INFO\n")
    (tmp_path / ".env").chmod(0o644)
    done = _doctor(home)
    warnings = [line for line in done.stdout.splitlines() if line.startswith("warn")]
    assert done.returncode == 0
    assert _states(done) == {"settings": "warn", "service keys": "warn", "encryption": "ok", "store": "ok"}
    for words in ("TOKEN_ENCRYPTION_KEY", "401", "chmod 600 .env", "service-key create"):
        assert [words for line in warnings if words in line] == [words]


def test_only_expired_service_keys_are_a_warning(tmp_path: Path) -> None:
    home = home_with_key_file(tmp_path)
    entry = {"service": "api", "sha256": "0" * 64, "scopes": ["tokens:read"], "expires_at": "2001-01-01T00:00:00Z"}
    write_key_file(home, json.dumps([entry]))
    done = _doctor(home)
    assert done.returncode == 0
    assert _findings(done)["service keys"][0] == "warn"


def test_no_secret_is_printed(tmp_path: Path) -> None:
    home = new_home(
        tmp_path,
        TOKEN_ENCRYPTION_PREVIOUS_KEYS=json.dumps({"2": new_master_key()}),
        TOKEN_STORE="supabase",
        SUPABASE_URL=f"http://{LOOPBACK}:{free_port()}",
        SUPABASE_SERVICE_KEY="the-service-key",
    )
    done = _doctor(home)
    _require_failure(done, "store", "store_unavailable")
    previous = json.loads(home.settings["TOKEN_ENCRYPTION_PREVIOUS_KEYS"])["2"]
    digest = json.loads(home.settings["SERVICE_KEYS"])[0]["sha256"]
    for secret in (home.service_key, digest, home.settings["TOKEN_ENCRYPTION_KEY"], previous, "the-service-key"):
        assert secret not in done.stdout + done.stderr


def test_a_supabase_project_is_checked(tmp_path: Path, supabase: SupabaseStack) -> None:
    settings = {"TOKEN_STORE": "supabase", "SUPABASE_URL": supabase.url}
    home = new_home(tmp_path, **settings, SUPABASE_SERVICE_KEY=supabase.service_key)
    done = _doctor(home)
    assert done.returncode == 0
    assert _states(done)["store"] == "ok"
    for key in (supabase.keys.anon, supabase.keys.wrong, supabase.keys.expired):
        wrong = replace(home, settings={**home.settings, "SUPABASE_SERVICE_KEY": key})
        done = _doctor(wrong)
        _require_failure(done, "store", "store_misconfigured", "SUPABASE_SERVICE_KEY")
        assert key not in done.stdout
    supabase.stop_postgrest()
    _require_failure(_doctor(home), "store", "store_unavailable")


EXPOSED = """
create table public.parent (like public.oauth_tokens);
alter table public.oauth_tokens inherit public.parent;
create role doctor_backend login in role service_role;
create role doctor_reporting nologin;
grant select on public.oauth_tokens to doctor_reporting;
grant doctor_reporting to authenticated;
grant select, truncate on public.oauth_tokens to anon;
create policy everybody on public.oauth_tokens using (true);
create view public.theirs as select id from public.oauth_tokens;
create function public.theirs() returns trigger language plpgsql as 'begin return new; end';
create trigger theirs before update on public.oauth_tokens for each row execute function public.theirs();
"""
CLOSED = """
revoke all on public.oauth_tokens from anon;
alter table public.oauth_tokens no inherit public.parent;
drop table public.parent;
drop role doctor_backend;
revoke select on public.oauth_tokens from doctor_reporting;
drop role doctor_reporting;
drop policy everybody on public.oauth_tokens;
drop view public.theirs;
drop function public.theirs() cascade;
"""


@pytest.mark.parametrize("role", ["service_role", "token_vault"])
def test_routes_past_the_vault_are_found(tmp_path: Path, supabase: SupabaseStack, role: str) -> None:
    key = {"service_role": supabase.keys.service, "token_vault": supabase.keys.vault}[role]
    home = new_home(tmp_path, TOKEN_STORE="supabase", SUPABASE_URL=supabase.url, SUPABASE_SERVICE_KEY=key)
    assert _findings(_doctor(home))["store"][0] == "ok"
    supabase.database.connection.execute(EXPOSED)
    try:
        done = _doctor(home)
    finally:
        supabase.database.connection.execute(CLOSED)
    assert done.returncode == 1
    found = [line.split(maxsplit=2) for line in done.stdout.splitlines() if line[6:].startswith("store")]
    for severity, words in (
        ("FAIL", "anon may SELECT, TRUNCATE on oauth_tokens: run `token-vault migrate --again`"),
        ("FAIL", "the policy everybody: run `token-vault migrate --again`"),
        ("FAIL", "oauth_tokens inherits from public.parent"),
        ("FAIL", "authenticated may SELECT on oauth_tokens through doctor_reporting: revoke the membership"),
        ("warn", "doctor_backend may act as service_role, because it is a member: revoke the membership unless"),
        ("warn", "the view public.theirs reads oauth_tokens with the rights of its owner"),
        ("warn", "the trigger theirs of oauth_tokens calls public.theirs()"),
    ):
        assert [line[0] for line in found if words in line[2]] == [severity], words


def test_a_database_without_the_function_of_the_findings_is_told(tmp_path: Path, supabase: SupabaseStack) -> None:
    home = new_home(
        tmp_path, TOKEN_STORE="supabase", SUPABASE_URL=supabase.url, SUPABASE_SERVICE_KEY=supabase.service_key
    )
    supabase.sql("alter function public.token_vault_access_findings() rename to other")
    try:
        done = _doctor(home)
    finally:
        supabase.sql("alter function public.other() rename to token_vault_access_findings")
    assert done.returncode == 0
    severity, text = _findings(done)["store"]
    assert severity == "warn"
    assert "privileges were not checked" in text
    assert "run `token-vault migrate`" in text


def test_a_base_url_that_callers_get_as_null_is_found(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / DATABASE)
    strange, *others = (row for row, _ in pulseplan_rows())
    rows.insert([strange | {"provider_url": "canvas.example.edu"}, *others])
    state, said = _findings(_doctor(new_home(tmp_path)))["store"]
    assert state == "warn"
    assert "1 token with a base URL that is no https URL" in said
    assert strange["id"] in said
    rows.replace(others)
    assert _findings(_doctor(new_home(tmp_path)))["store"][0] == "ok"
