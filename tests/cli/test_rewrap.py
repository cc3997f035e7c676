"""`token-vault rewrap`: its effect, its output and its exit code."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from contextlib import closing
from pathlib import Path

import pytest

from app.rewrap.sweep import PAGE_ROWS
from tests.support.paths import ROOT
from tests.support.process.home import (
    COMMAND,
    COMMAND_SECONDS,
    environment,
    new_master_key,
    require_refusal,
    run,
    token_vault,
)
from tests.support.rewrap.command import Printed, ended, prepared, printed, rewrap, started, without_progress
from tests.support.rewrap.stored_rows import (
    KEYS,
    Row,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    broken_rows,
    differences_but_for_encryption,
    encryption,
    key_settings,
    local_encryption,
    pulseplan_rows,
    refresh_of,
    rows_under_first,
    sealed_row,
    what_a_row_holds,
)
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import sqlite_connection
from tests.support.waiting import eventually

SCRIPT = ROOT / "scripts" / "migrate_to_kms.py"
SECOND = key_settings(2, 1)
ERROR_OF = {
    "flipped": "integrity",
    "foreign": "integrity",
    "unknown version": "key_denied",
    "nonsense": "malformed_ciphertext",
}


def _require_silence(done: Printed, settings: dict[str, str], stored: list[Row]) -> None:
    """Require that no secret, no address and no traceback was printed."""
    printed = done.stdout + done.stderr
    secrets = [value for name, value in settings.items() if name.endswith(("_KEY", "_URL")) and value]
    secrets += [*KEYS.values(), "Traceback", "1234~access of", "refresh of"]
    secrets += [row["access_token"] for row in stored]
    assert [secret for secret in secrets if secret in printed] == []


def test_every_token_is_rewrapped_and_nothing_else_changes(rows: Rows, tmp_path: Path) -> None:
    settings = rows.settings() | SECOND
    sealed = rows_under_first(PAGE_ROWS + 50)
    old = pulseplan_rows()
    current = [sealed_row(local_encryption(2)) for _ in range(5)]
    rows.insert([*sealed, *(row for row, _ in old), *current])
    before = rows.rows()
    done = rewrap(folder=tmp_path, settings=settings)
    due = len(sealed) + len(old)
    assert done.exit_code == 0, done
    assert done.counts == {"due": due, "rewrapped": due, "overtaken": 0, "unreadable": 0, "in doubt": 0, "remaining": 0}
    assert done.verdict == "Done. Nothing is left under another key."
    _require_silence(done, settings, sealed)
    after = rows.rows()
    second = local_encryption(2)
    plaintexts = {row["id"]: plaintext for row, plaintext in old}
    for row_id, row in after.items():
        access = plaintexts.get(row_id, access_of(row_id))
        refresh = "" if row_id in plaintexts else refresh_of(row_id)
        assert what_a_row_holds(second, row) == (access, refresh)
        assert row["encryption_scheme"] == "local:v2"
        assert row["access_token"].startswith("v2:")
        assert list(differences_but_for_encryption(before[row_id], row)) == []
    assert after.keys() == before.keys()
    assert all(after[row["id"]] == before[row["id"]] for row in current), "rows under the primary stay as they are"

    again = rewrap(folder=tmp_path, settings=settings)
    assert (again.exit_code, again.counts["due"], again.counts["rewrapped"]) == (0, 0, 0)
    assert rows.rows() == after


def test_unreadable_rows_are_printed_one_by_one_and_stop_nothing(rows: Rows, tmp_path: Path) -> None:
    broken = broken_rows()
    rows.insert([*rows_under_first(20), *broken.values()])
    before = rows.rows()
    expected = {row["id"]: ERROR_OF[name] for name, row in broken.items()}
    dry = rewrap("--dry-run", folder=tmp_path, settings=rows.settings() | SECOND)
    assert (dry.exit_code, dry.unreadable) == (1, expected)
    assert dry.counts == {"due": 24, "readable": 20, "overtaken": 0, "unreadable": 4, "in doubt": 0, "remaining": 24}
    assert rows.rows() == before
    for rewrapped in (20, 0):
        done = rewrap(folder=tmp_path, settings=rows.settings() | SECOND)
        assert (done.exit_code, done.unreadable) == (1, expected)
        assert (done.counts["rewrapped"], done.counts["unreadable"], done.counts["remaining"]) == (rewrapped, 4, 4)
        assert "integrity 2, key_denied 1, malformed_ciphertext 1" in done.stdout
        assert "docs/key-rotation.md" in done.verdict
        _require_silence(done, {}, list(broken.values()))
    after = rows.rows()
    assert {row_id: after[row_id] for row_id in expected} == {row_id: before[row_id] for row_id in expected}


def test_a_dry_run_of_readable_rows_ends_with_0_and_writes_nothing(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(30))
    before = sqlite.rows()
    done = rewrap("--dry-run", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert (done.exit_code, done.counts["readable"], done.counts["remaining"]) == (0, 30, 30)
    assert sqlite.rows() == before


def test_a_limited_sweep_ends_with_2_until_nothing_is_left(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(25))
    ends = []
    for _ in range(3):
        done = rewrap("--limit", "10", folder=tmp_path, settings=sqlite.settings() | SECOND)
        ends.append((done.exit_code, done.counts["rewrapped"], done.counts["remaining"]))
    assert ends == [(2, 10, 15), (2, 10, 5), (0, 5, 0)]


def test_unreadable_rows_do_not_count_against_the_limit(sqlite: SqliteRows, tmp_path: Path) -> None:
    """They come first here, and would use up the limit of every run."""
    settings = sqlite.settings() | SECOND
    broken = [row | {"id": f"00000000-0000-4000-8000-00000000000{n}"} for n, row in enumerate(broken_rows().values())]
    sqlite.insert([*broken, *rows_under_first(7)])
    dry = rewrap("--dry-run", "--limit", "3", folder=tmp_path, settings=settings)
    assert (dry.exit_code, dry.counts["readable"]) == (2, 3)
    assert dry.verdict == "Not finished: the limit of 3 rows is reached. Nothing was written."
    done = rewrap("--limit", "3", folder=tmp_path, settings=settings)
    assert (done.exit_code, done.counts["rewrapped"], done.counts["remaining"]) == (2, 3, 8)


def test_a_limit_that_is_just_enough_ends_with_0(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(10))
    settings = sqlite.settings() | SECOND
    dry = rewrap("--dry-run", "--limit", "10", folder=tmp_path, settings=settings)
    done = rewrap("--limit", "10", folder=tmp_path, settings=settings)
    assert (dry.exit_code, done.exit_code, done.counts["remaining"]) == (0, 0, 0)


def test_only_the_given_provider_is_rewrapped_and_counted(rows: Rows, tmp_path: Path) -> None:
    rows.insert(rows_under_first(7) + rows_under_first(5, "google"))
    done = rewrap("--provider", "google", folder=tmp_path, settings=rows.settings() | SECOND)
    assert (done.exit_code, done.counts["due"], done.counts["rewrapped"], done.counts["remaining"]) == (0, 5, 5, 0)
    assert done.verdict == (
        "Done. No token of google is left under another key. Other providers were not looked at: "
        "retire no key before a run without --provider."
    )
    schemes = {(row["provider"], row["encryption_scheme"]) for row in rows.rows().values()}
    assert schemes == {("canvas", "local:v1"), ("google", "local:v2")}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_ends_it_cleanly_with_true_counts(sqlite: SqliteRows, tmp_path: Path, number: signal.Signals) -> None:
    settings = sqlite.settings() | SECOND
    sqlite.insert(rows_under_first(1_000))
    process = prepared("--rate", "100", folder=tmp_path, settings=settings)
    eventually(lambda: sqlite.count("local:v2") > 0, within_seconds=COMMAND_SECONDS)
    process.send_signal(number)
    done = printed(process.end(COMMAND_SECONDS))
    left = sqlite.count("local:v1")
    assert (done.exit_code, without_progress(done.stderr)) == (2, "")
    assert 0 < left < 1_000
    assert (done.counts["due"], done.counts["remaining"], done.counts["rewrapped"]) == (1_000, left, 1_000 - left)
    assert done.verdict.startswith(f"Not finished: {number.name} stopped it.")


def test_a_timeout_ends_the_sweep_with_2(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(500))
    done = rewrap("--rate", "20", "--timeout", "3", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert done.exit_code == 2
    assert done.verdict.startswith("Not finished: its time was over.")
    assert done.counts["rewrapped"] == sqlite.count("local:v2") <= 3 * 20 + 1
    assert done.counts["remaining"] in {sqlite.count("local:v1"), None}


def test_progress_without_a_terminal_is_a_line_every_few_seconds(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(500))
    process = started("--rate", "20", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert process.stderr is not None
    pattern = re.compile(r"[0-9]+ of 500 done, [0-9]+ rows/s, [0-9]+:[0-9]{2} left\n")
    assert any(pattern.fullmatch(line) for line in process.stderr)
    assert ended(process, by=signal.SIGTERM).exit_code == 2


def test_two_shards_at_once_rewrap_every_row_once(rows: Rows, tmp_path: Path) -> None:
    settings = rows.settings() | SECOND
    rows.insert(rows_under_first(400))
    processes = [prepared("--shard", shard, folder=tmp_path, settings=settings) for shard in ("1/2", "2/2")]
    done = [printed(process.end(COMMAND_SECONDS)) for process in processes]
    assert [one.exit_code for one in done] == [0, 0], done
    assert sum(one.counts["rewrapped"] or 0 for one in done) == 400
    assert [one.counts["overtaken"] for one in done] == [0, 0]
    assert {row["encryption_scheme"] for row in rows.rows().values()} == {"local:v2"}


def test_a_finished_shard_reports_the_rows_of_the_others(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(40))
    settings = sqlite.settings() | SECOND
    first = rewrap("--shard", "1/2", folder=tmp_path, settings=settings)
    left = sqlite.count("local:v1")
    assert 0 < left < 40
    assert (first.exit_code, first.counts["due"], first.counts["remaining"]) == (0, 40, left)
    assert first.verdict == (
        f"Shard 1/2 is done. {left} rows are left under another key in all shards: "
        "retire no key before a run without --shard."
    )
    second = rewrap("--shard", "2/2", folder=tmp_path, settings=settings)
    assert (second.exit_code, second.counts["rewrapped"], second.counts["remaining"]) == (0, left, 0)
    assert second.verdict == "Done. Nothing is left under another key."


# --- KMS


def test_throttling_is_printed_once_and_every_row_is_rewrapped(kms: Kms, rows: Rows, tmp_path: Path) -> None:
    settings = rows.settings() | key_settings(1) | kms.environment()
    rows.insert(rows_under_first(60))
    kms.faults.error("ThrottlingException", every=3)
    done = rewrap(folder=tmp_path, settings=settings)
    assert (done.exit_code, done.counts["rewrapped"], done.counts["remaining"]) == (0, 60, 0), done
    assert {row["encryption_scheme"] for row in rows.rows().values()} == {f"kms:{kms.key_arn}"}
    waits = [line for line in done.stderr.splitlines() if line.startswith("waiting")]
    assert len(waits) == len(set(waits)) <= 4, "not for each row"
    _require_silence(done, settings, [])
    kms.faults.clear()
    reader = encryption(settings)
    assert {what_a_row_holds(reader, row) == (access_of(key), refresh_of(key)) for key, row in rows.rows().items()} == {
        True
    }


def test_an_outage_of_kms_is_waited_for(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(40))
    kms.faults.down()
    process = started(folder=tmp_path, settings=sqlite.settings() | key_settings(1) | kms.environment())
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith("waiting  key_unavailable: KMS cannot be reached, or something answers in its place; for 5")
    kms.faults.clear()
    done = ended(process)
    assert (done.exit_code, done.counts["rewrapped"]) == (0, 40)


def test_counts_are_unknown_while_kms_has_not_named_the_alias(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | key_settings(1) | kms.environment() | {"KMS_KEY_ID": kms.alias}
    sqlite.insert(rows_under_first(4))
    assert rewrap(folder=tmp_path, settings=settings).exit_code == 0
    kms.faults.down()
    done = rewrap("--timeout", "2", folder=tmp_path, settings=settings)
    assert done.exit_code == 2
    assert (done.counts["due"], done.counts["remaining"]) == (None, None)
    kms.faults.clear()
    assert rewrap(folder=tmp_path, settings=settings).counts["due"] == 0, "the rows are under the alias's key"


def test_a_denied_primary_is_one_line(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(4))
    kms.disable(kms.key_arn)
    done = token_vault("rewrap", folder=tmp_path, settings=sqlite.settings() | key_settings(1) | kms.environment())
    require_refusal(done, 2, "key_denied: the KMS key is disabled", "token-vault doctor")
    assert {row["encryption_scheme"] for row in sqlite.rows().values()} == {"local:v1"}


def test_the_fallback_never_replaces_kms_in_a_rewrap(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | key_settings(2, 1) | kms.environment() | {"KMS_FALLBACK_TO_LOCAL": "true"}
    marked = sealed_row(local_encryption(2))
    marked["metadata"] |= {"encryption_method": "aes256-gcm-v2", "encryption_fallback": True}
    sqlite.insert([*rows_under_first(10), marked])
    kms.faults.down()
    assert rewrap("--timeout", "2", folder=tmp_path, settings=settings).exit_code == 2
    assert {row["encryption_scheme"] for row in sqlite.rows().values()} == {"local:v1", "local:v2"}
    kms.faults.clear()
    assert rewrap(folder=tmp_path, settings=settings).exit_code == 0
    swept = sqlite.rows()[marked["id"]]
    assert swept["encryption_scheme"] == f"kms:{kms.key_arn}"
    assert "encryption_fallback" not in swept["metadata"], "the mark is removed with the local ciphertext"


# --- the store


def test_a_database_that_does_not_exist_is_not_created(tmp_path: Path) -> None:
    settings = {"SQLITE_PATH": "elsewhere/vault.db", **SECOND}
    require_refusal(token_vault("rewrap", folder=tmp_path, settings=settings), 2, "SQLITE_PATH", "does not exist")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_service_key_is_one_line(supabase: SupabaseStack, tmp_path: Path) -> None:
    settings = SupabaseRows(supabase).settings() | SECOND | {"SUPABASE_SERVICE_KEY": supabase.keys.wrong}
    require_refusal(token_vault("rewrap", folder=tmp_path, settings=settings), 2, "store_misconfigured")


def test_a_store_that_is_down_is_waited_for(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(5))
    supabase.stop_postgrest()
    settings = rows.settings() | SECOND
    done = rewrap("--timeout", "2", folder=tmp_path, settings=settings)
    assert (done.exit_code, done.counts["due"], done.counts["remaining"]) == (2, None, None)
    assert len([line for line in done.stderr.splitlines() if line.startswith("waiting  store_unavailable")]) == 1
    _require_silence(done, settings, [])


def test_counts_are_true_after_lost_answers(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(600))
    supabase.faults.cut_after_commit(times=2, when=lambda request: "replace_ciphertexts" in request.target)
    done = rewrap(folder=tmp_path, settings=rows.settings() | SECOND)
    assert done.exit_code == 0, done
    assert done.counts == {"due": 600, "rewrapped": 600, "overtaken": 0, "unreadable": 0, "in doubt": 0, "remaining": 0}
    assert {row["encryption_scheme"] for row in rows.rows().values()} == {"local:v2"}


# --- the terminal, the command line


def _on_a_terminal(*arguments: str, folder: Path, settings: dict[str, str], columns: int = 100) -> tuple[int, str]:
    """Run the command on a terminal; return its exit code and the terminal's input."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        [COMMAND, "rewrap", *arguments],
        cwd=folder,
        env=environment(settings | {"TERM": "xterm"}),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    chunks = []
    try:
        while chunk := _read(ours):
            chunks.append(chunk)
        return process.wait(COMMAND_SECONDS), b"".join(chunks).decode()
    finally:
        process.kill()
        os.close(ours)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65_536)
    except OSError:  # the other end is closed
        return b""


def test_the_progress_bar_of_a_terminal_is_erased_at_the_end(sqlite: SqliteRows, tmp_path: Path) -> None:
    nonsense = broken_rows()["nonsense"]
    sqlite.insert([*rows_under_first(1_000), nonsense])
    code, screen = _on_a_terminal("--rate", "500", folder=tmp_path, settings=sqlite.settings() | SECOND, columns=60)
    assert code == 1
    drawn = re.findall(r"\r\x1b\[K([^\r\n]+)", screen)
    bars = [line for line in drawn if re.match(r" *[0-9]+% \[#*\.*\] ", line)]
    assert any(re.search(r"[0-9,]+ of 1,001 done, [1-9][0-9,]* rows/s", line) for line in bars)
    assert max(map(len, bars)) < 60, "a line that wraps cannot be cleared"
    left = [re.sub(r".*\r\x1b\[K", "", line) for line in screen.replace("\r\n", "\n").split("\n")]
    text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(left))
    assert "[#" not in text
    assert text.startswith(f"unreadable  {nonsense['id']}  malformed_ciphertext: "), text
    assert Printed(code, text, "").counts["rewrapped"] == 1_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("--limit", "0"),
        ("--rate", "0"),
        ("--rate", "nan"),
        ("--timeout", "-1"),
        ("--provider", "Can vas"),
        ("--shard", "3/2"),
    ],
)
def test_a_wrong_option_stops_before_anything_is_opened(tmp_path: Path, arguments: tuple[str, str]) -> None:
    done = token_vault("rewrap", *arguments, folder=tmp_path, settings=SECOND)
    assert (done.returncode, done.stdout) == (2, "")
    assert arguments[0] in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_setting_is_one_line_without_its_value(tmp_path: Path) -> None:
    settings = SECOND | {"TOKEN_ENCRYPTION_PREVIOUS_KEYS": f"[{new_master_key()}]"}
    done = token_vault("rewrap", folder=tmp_path, settings=settings)
    require_refusal(done, 2, "TOKEN_ENCRYPTION_PREVIOUS_KEYS")
    assert settings["TOKEN_ENCRYPTION_PREVIOUS_KEYS"] not in done.stderr


# --- PulsePlan's formats


def _old_rows() -> list[Row]:
    return [row for row, _ in pulseplan_rows()]


def test_a_notice_about_legacy_rows_precedes_the_first_rewrap(sqlite: SqliteRows, tmp_path: Path) -> None:
    old = _old_rows()
    sqlite.insert([*old, *rows_under_first(2)])
    before = sqlite.rows()
    with closing(sqlite_connection(sqlite.path)) as connection:
        connection.execute("BEGIN IMMEDIATE")  # nobody else can write
        process = started(folder=tmp_path, settings=sqlite.settings() | SECOND)
        assert process.stderr is not None
        notice = next(line for line in process.stderr if line.startswith("notice"))
        assert notice.startswith(f"notice  {len(old)} rows in PulsePlan's formats: its own service cannot read them")
        assert sqlite.rows() == before
        connection.execute("ROLLBACK")
    done = ended(process)
    assert (done.exit_code, done.counts["rewrapped"]) == (0, len(old) + 2)


@pytest.mark.parametrize(("old", "allowed"), [(False, "true"), (True, "false")])
def test_there_is_no_notice_without_legacy_rows_to_rewrap(
    sqlite: SqliteRows, tmp_path: Path, old: bool, allowed: str
) -> None:
    sqlite.insert([*(_old_rows() if old else []), *rows_under_first(2)])
    done = rewrap(folder=tmp_path, settings=sqlite.settings() | SECOND | {"ALLOW_LEGACY_FORMATS": allowed})
    assert "PulsePlan" not in done.stderr
    assert (done.exit_code, done.counts["rewrapped"]) == (int(old), 2)


# --- scripts/migrate_to_kms.py


def _migrate(*arguments: str, folder: Path, settings: dict[str, str]) -> Printed:
    done = run(sys.executable, str(SCRIPT), *arguments, folder=folder, settings=settings)
    return Printed(done.returncode, done.stdout, done.stderr)


def test_migrate_to_kms_requires_kms(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert(rows_under_first(3))
    settings = sqlite.settings() | SECOND | kms.environment() | {"USE_KMS": "false"}
    done = run(sys.executable, str(SCRIPT), folder=tmp_path, settings=settings)
    require_refusal(done, 2, "USE_KMS is not true")
    assert {row["encryption_scheme"] for row in sqlite.rows().values()} == {"local:v1"}


def test_migrate_to_kms_rewraps_everything_under_kms(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    settings = sqlite.settings() | key_settings(1) | kms.environment()
    old = _old_rows()
    sqlite.insert([*rows_under_first(20), *old])
    done = _migrate(folder=tmp_path, settings=settings)
    assert f"notice  {len(old)} rows in PulsePlan's formats" in done.stderr
    assert (done.exit_code, done.counts["rewrapped"], done.counts["remaining"]) == (0, 20 + len(old), 0)
    assert {row["encryption_scheme"] for row in sqlite.rows().values()} == {f"kms:{kms.key_arn}"}


def test_migrate_to_kms_takes_the_options_of_rewrap(tmp_path: Path) -> None:
    ours = token_vault("rewrap", "--help", folder=tmp_path).stdout
    theirs = run(sys.executable, str(SCRIPT), "--help", folder=tmp_path).stdout
    assert re.findall(r"--[a-z-]+", theirs.partition("Options:")[2]) == re.findall(
        r"--[a-z-]+", ours.partition("Options:")[2]
    )
