"""`token-vault rewrap --processes N`: the same sweep, whose processes do what one core is too slow for."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from app.cli.rewrap import RESEAL_PROCESS
from app.tokens.reencryption import PAGE_ROWS
from app.tokens.reseal_lines import MAXIMUM_LINE_BYTES
from app.tokens.resealing_here import ResealerHere
from app.tokens.resealing_processes import ResealerProcesses
from app.tokens.sqlite_repository import SqliteRepository
from app.tokens.token_cipher import TokenCipher
from tests.process.home import environment
from tests.process.rewrap_run import ended, rewrap, started, wait_for
from tests.process.stored_rows import (
    KEYS,
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
    sealed_row,
    what_a_row_holds,
)
from tests.tokens.sweeps import Heard, bound_row, sweep

if TYPE_CHECKING:
    import subprocess

    from app.tokens.sweep_report import SweepReport
    from tests.stack.kms import Kms

SECOND = key_settings(2, 1)


@pytest.fixture(params=["sqlite", "supabase"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    if request.param == "sqlite":
        return SqliteRows(tmp_path / "vault.db")
    return SupabaseRows(request.getfixturevalue("supabase"))


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteRows:
    return SqliteRows(tmp_path / "vault.db")


def test_every_token_moves_to_kms_once_and_what_cannot_be_read_is_told(kms: Kms, rows: Rows, tmp_path: Path) -> None:
    sealed, old, broken = [sealed_row(local_encryption(1)) for _ in range(60)], pulseplan_rows(), broken_rows()
    rows.insert([*sealed, *(row for row, _ in old), *broken.values()])
    before = rows.rows()
    settings = rows.settings() | key_settings(1) | kms.environment()
    dry = rewrap("--processes", "3", "--dry-run", folder=tmp_path, settings=settings)
    assert (dry.exit_code, dry.counts["readable"], dry.counts["unreadable"]) == (1, len(sealed) + len(old), 4), dry
    assert rows.rows() == before
    kms.forget_requests()
    done = rewrap("--processes", "3", folder=tmp_path, settings=settings)
    assert (done.exit_code, done.stderr) == (1, ""), done
    assert (done.counts["moved"], done.counts["remaining"]) == (len(sealed) + len(old), 4)
    assert done.unreadable == dry.unreadable
    assert done.unreadable.keys() == {row["id"] for row in broken.values()}
    printed = done.stdout + done.stderr
    assert [text for text in (*KEYS.values(), "1234~access of", "refresh of", "Traceback") if text in printed] == []
    after = rows.rows()
    reader, plaintexts = encryption(settings), {row["id"]: plaintext for row, plaintext in old}
    for row_id in before.keys() - done.unreadable.keys():
        access = plaintexts.get(row_id, access_of(row_id))
        assert what_a_row_holds(reader, after[row_id]) == (access, "" if row_id in plaintexts else refresh_of(row_id))
        assert after[row_id]["encryption_scheme"] == f"kms:{kms.key_arn}"
        assert list(differences_but_for_encryption(before[row_id], after[row_id])) == []
    assert all(after[row_id] == before[row_id] for row_id in done.unreadable)


def test_one_users_tokens_go_to_one_process_and_share_a_data_key(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    user = str(uuid4())
    sqlite.insert([bound_row(local_encryption(1), user, number) for number in range(20)])
    done = rewrap("--processes", "4", folder=tmp_path, settings=sqlite.settings() | key_settings(1) | kms.environment())
    assert (done.exit_code, done.counts["moved"]) == (0, 20)
    of_user = [request for request in kms.requests if request.context["user_id"] == user]
    assert [request.operation for request in of_user] == ["GenerateDataKey"]


def test_a_row_too_large_to_hand_over_is_told_like_any_other(sqlite: SqliteRows, tmp_path: Path) -> None:
    large = sealed_row(local_encryption(1)) | {"access_token": "v1:" + "A" * MAXIMUM_LINE_BYTES}
    sqlite.insert([sealed_row(local_encryption(1)), large])
    done = rewrap("--processes", "2", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert (done.exit_code, done.counts["moved"]) == (1, 1)
    assert done.unreadable == {large["id"]: "malformed_ciphertext"}


def test_a_primary_that_cannot_seal_is_one_line(kms: Kms, sqlite: SqliteRows, tmp_path: Path) -> None:
    """The key is disabled when it has been proved already, so that a process is the first to hear of it."""
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(600)])
    settings = sqlite.settings() | key_settings(1) | kms.environment()
    process = started("--processes", "2", "--rate", "50", folder=tmp_path, settings=settings)
    wait_for(lambda: sqlite.count(f"kms:{kms.key_arn}") > 0)
    kms.disable(kms.key_arn)
    done = ended(process)
    assert done.exit_code == 2
    assert done.verdict.startswith("Not finished: key_denied: the KMS key is disabled"), done
    assert done.counts["moved"] == sqlite.count(f"kms:{kms.key_arn}")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_to_all_of_them_ends_it_cleanly_with_true_counts(
    sqlite: SqliteRows, tmp_path: Path, number: signal.Signals
) -> None:
    """As a service manager sends SIGTERM to each process of a unit, and a terminal SIGINT to its foreground."""
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(1_000)])
    process = started("--processes", "2", "--rate", "100", folder=tmp_path, settings=sqlite.settings() | SECOND)
    wait_for(lambda: sqlite.count("local:v2") > 0)
    children = _children_of(process)
    if number == signal.SIGTERM:
        for child in children:
            os.kill(child, number)
        time.sleep(0.3)
        assert all(map(_lives, children)), "the sweep alone decides when they end"
    done = ended(process, by=number)
    left = sqlite.count("local:v1")
    assert (done.exit_code, done.stderr) == (2, "")
    assert (done.counts["remaining"], done.counts["moved"]) == (left, 1_000 - left)
    assert 0 < left < 1_000
    assert done.verdict.startswith(f"Not finished: {number.name} told it to stop.")
    assert not any(map(_lives, children))


def test_when_the_sweep_is_killed_its_processes_end(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(1_000)])
    process = started("--processes", "2", "--rate", "100", folder=tmp_path, settings=sqlite.settings() | SECOND)
    wait_for(lambda: sqlite.count("local:v2") > 0)
    children = _children_of(process)
    assert len(children) == 2
    process.kill()
    assert process.communicate()[1] == ""
    wait_for(lambda: not any(map(_lives, children)))


def test_a_process_that_is_killed_ends_the_sweep_as_unfinished_and_the_next_one_finishes(
    sqlite: SqliteRows, tmp_path: Path
) -> None:
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(3 * PAGE_ROWS)])
    process = started("--processes", "2", "--rate", "100", folder=tmp_path, settings=sqlite.settings() | SECOND)
    wait_for(lambda: sqlite.count("local:v2") > 0)
    os.kill(_children_of(process)[0], signal.SIGKILL)
    done = ended(process)
    assert done.exit_code == 2
    assert "a process of the sweep ended before its work was done" in done.verdict
    assert "Traceback" not in done.stdout + done.stderr
    assert done.counts["moved"] == sqlite.count("local:v2")
    again = rewrap("--processes", "2", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert (again.exit_code, again.counts["remaining"]) == (0, 0)
    assert all(what_a_row_holds(local_encryption(2), row)[0] == access_of(key) for key, row in sqlite.rows().items())


@pytest.mark.parametrize("processes", ["0", "65", "many"])
def test_a_number_of_processes_that_makes_no_sense_is_refused(tmp_path: Path, processes: str) -> None:
    done = rewrap("--processes", processes, folder=tmp_path, settings={})
    assert (done.exit_code, "--processes" in done.stderr) == (2, True)


async def test_where_an_alias_moves_meanwhile_everything_ends_under_its_new_key(
    kms: Kms, sqlite: SqliteRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the processes hear of it, for only they seal."""
    new = kms.create_key()
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(4 * PAGE_ROWS)])
    settings = (
        key_settings(1) | kms.environment() | {"KMS_KEY_ID": kms.alias, "KMS_PREVIOUS_KEY_IDS": f'["{kms.key_arn}"]'}
    )

    def move_alias(report: SweepReport) -> None:
        if report.moved:
            kms.move_alias(kms.alias, new)

    monkeypatch.chdir(tmp_path)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    tokens, service = SqliteRepository(path=tmp_path / "vault.db"), encryption(settings)
    here = ResealerHere(cipher=TokenCipher(encryption=service))
    try:
        async with ResealerProcesses(here=here, command=RESEAL_PROCESS, processes=2) as resealer:
            report = await sweep(tokens, service, heard=Heard(on_progress=move_alias), resealer=resealer).run()
    finally:
        await tokens.close()
    assert report.remaining == 0
    assert sqlite.count(f"kms:{new}") == 4 * PAGE_ROWS


def _children_of(process: subprocess.Popen[str]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [int(child) for child in listed.split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
