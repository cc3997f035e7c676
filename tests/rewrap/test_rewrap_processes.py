"""`token-vault rewrap --processes N`: the same sweep, whose processes do what one core is too slow for."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from app.config.settings import Settings
from app.errors import InternalError
from app.reseal_process import COMMAND, first_line
from app.rewrap.report import SweepReport
from app.rewrap.reseal_lines import MAXIMUM_LINE_BYTES
from app.rewrap.resealing_here import ResealerHere
from app.rewrap.resealing_processes import ANSWER_SECONDS, ResealerProcesses
from app.rewrap.sweep import PAGE_ROWS
from app.security.context import SecretField
from app.server.workers import open_variables
from app.tokens.cipher import TokenCipher
from tests.support.rewrap.command import ended, rewrap, started, wait_for
from tests.support.rewrap.stored_rows import (
    KEYS,
    Row,
    Rows,
    SqliteRows,
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
from tests.support.rewrap.sweeps import Heard, bound_row, sweep
from tests.support.stack.kms import Kms
from tests.support.stores.stores import SqliteStore

SECOND = key_settings(2, 1)


def test_every_token_moves_to_kms_once_and_what_cannot_be_read_is_told(kms: Kms, rows: Rows, tmp_path: Path) -> None:
    sealed, old, broken = [sealed_row(local_encryption(1)) for _ in range(60)], pulseplan_rows(), broken_rows()
    rows.insert([*sealed, *(row for row, _ in old), *broken.values()])
    before = rows.rows()
    settings = rows.settings() | key_settings(1) | kms.environment()
    dry = rewrap("--processes", "2", "--dry-run", folder=tmp_path, settings=settings)
    assert (dry.exit_code, dry.counts["readable"], dry.counts["unreadable"]) == (1, len(sealed) + len(old), 4), dry
    assert rows.rows() == before
    kms.faults.error("ThrottlingException", every=10)
    done = rewrap("--processes", "2", folder=tmp_path, settings=settings)
    kms.faults.clear()
    assert done.exit_code == 1, done
    assert all(line.startswith("waiting") for line in done.stderr.splitlines())
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
    done = rewrap("--processes", "3", folder=tmp_path, settings=sqlite.settings() | key_settings(1) | kms.environment())
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
    children = _children_of(process.pid)
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
    # long enough that the kill cuts some line
    sqlite.insert([_long_row() for _ in range(600)])
    process = started("--processes", "2", folder=tmp_path, settings=sqlite.settings() | SECOND)
    wait_for(lambda: sqlite.count("local:v2") > 0)
    children = _children_of(process.pid)
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
    os.kill(_children_of(process.pid)[0], signal.SIGKILL)
    done = ended(process)
    assert done.exit_code == 2
    assert "a process of the sweep ended before its work was done" in done.verdict
    assert "Traceback" not in done.stdout + done.stderr
    assert done.counts["moved"] == sqlite.count("local:v2")
    assert done.counts["remaining"] == sqlite.count("local:v1")
    again = rewrap("--processes", "2", folder=tmp_path, settings=sqlite.settings() | SECOND)
    assert (again.exit_code, again.counts["remaining"]) == (0, 0)
    assert all(what_a_row_holds(local_encryption(2), row)[0] == access_of(key) for key, row in sqlite.rows().items())


@pytest.mark.parametrize("processes", ["0", "17", "many"])
def test_a_number_of_processes_that_makes_no_sense_is_refused(tmp_path: Path, processes: str) -> None:
    done = rewrap("--processes", processes, folder=tmp_path, settings={})
    assert (done.exit_code, "--processes" in done.stderr) == (2, True)


async def test_where_an_alias_moves_meanwhile_everything_ends_under_its_new_key(kms: Kms, sqlite: SqliteRows) -> None:
    """Only the processes hear of it, for only they seal."""
    new = kms.create_key()
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(4 * PAGE_ROWS)])
    settings = (
        key_settings(1) | kms.environment() | {"KMS_KEY_ID": kms.alias, "KMS_PREVIOUS_KEY_IDS": f'["{kms.key_arn}"]'}
    )

    def move_alias(report: SweepReport) -> None:
        if report.moved:
            kms.move_alias(kms.alias, new)

    async with SqliteStore(sqlite.path).open() as tokens, _several(settings) as resealer:
        heard = Heard(on_progress=move_alias)
        report = await sweep(tokens, encryption(settings), heard=heard, resealer=resealer).run()
    assert report.remaining == 0
    assert sqlite.count(f"kms:{new}") == 4 * PAGE_ROWS


def test_what_the_settings_say_meanwhile_is_for_the_next_sweep(sqlite: SqliteRows, tmp_path: Path) -> None:
    """Processes that read them for themselves would seal everything under a key that the sweep knows nothing of."""
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(30)])
    dotenv = tmp_path / ".env"
    dotenv.write_text(_dotenv(sqlite.settings() | SECOND))
    process = started("--processes", "2", folder=tmp_path, settings={})
    wait_for(lambda: len(_children_of(process.pid)) == 2)
    dotenv.write_text(_dotenv(sqlite.settings() | key_settings(3, 1, 2)))
    done = ended(process)
    assert (done.exit_code, done.counts["moved"]) == (0, 30), done
    assert sqlite.count("local:v2") == 30


def test_no_process_has_a_secret_in_its_environment_or_can_be_dumped(sqlite: SqliteRows, tmp_path: Path) -> None:
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(300)])
    process = started("--processes", "2", "--rate", "50", folder=tmp_path, settings=sqlite.settings() | SECOND)
    wait_for(lambda: sqlite.count("local:v2") > 0)
    children = _children_of(process.pid)
    for child in children:
        given = Path(f"/proc/{child}/environ").read_bytes() + Path(f"/proc/{child}/cmdline").read_bytes()
        assert [key for key in KEYS.values() if key.encode() in given] == []
    for one in (process.pid, *children):
        [cores] = re.findall(r"Max core file size +(\S+) +(\S+)", Path(f"/proc/{one}/limits").read_text())
        assert cores == ("0", "0")
    ended(process, by=signal.SIGTERM)


async def test_a_process_that_stands_still_is_not_waited_for_for_ever(sqlite: SqliteRows) -> None:
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(40)])
    others, before = set(_children_of(os.getpid())), sqlite.rows()

    def stop_one(report: SweepReport) -> None:
        if not report.moved:
            os.kill(min(set(_children_of(os.getpid())) - others), signal.SIGSTOP)

    async with SqliteStore(sqlite.path).open() as tokens, _several(SECOND, answer_seconds=1) as resealer:
        heard = Heard(on_progress=stop_one)
        with pytest.raises(InternalError, match="did not answer"):
            await sweep(tokens, local_encryption(2), heard=heard, resealer=resealer).run()
    assert sqlite.rows() == before
    assert set(_children_of(os.getpid())) == others


@pytest.mark.parametrize(
    ("program", "message"),
    {
        "ends at once": ("", "does not start"),
        "is something else": ("print('hello')", "does not start"),
        "answers half a line": ("print('ready'); print('[0,[[\"v2:AAAA', end='')", "ended before its work was done"),
        "answers nonsense": ("print('ready'); print('{}'); input()", "ended before its work was done"),
        "knows another error": ("print('ready'); print('[0,null,[\"X\",\"y\",false]]'); input()", "ended before"),
    }.values(),
)
async def test_whatever_a_process_says_the_sweep_ends_with_an_error(
    sqlite: SqliteRows, program: str, message: str
) -> None:
    sqlite.insert([sealed_row(local_encryption(1)) for _ in range(3)])
    before = sqlite.rows()
    command = (sys.executable, "-uc", f"import sys; sys.stdin.readline(); {program}")
    async with SqliteStore(sqlite.path).open() as tokens:
        with pytest.raises(InternalError, match=message):
            async with _several(SECOND, command=command) as resealer:
                await sweep(tokens, local_encryption(2), resealer=resealer).run()
    assert sqlite.rows() == before


def _several(
    settings: dict[str, str], *, command: Sequence[str] = COMMAND, answer_seconds: float = ANSWER_SECONDS
) -> ResealerProcesses:
    values: dict[str, Any] = {name.lower(): value for name, value in settings.items()}
    return ResealerProcesses(
        here=ResealerHere(cipher=TokenCipher(encryption=encryption(settings))),
        command=command,
        environment=open_variables(),
        first_line=first_line(Settings(_env_file=None, **values)),  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        processes=2,
        answer_seconds=answer_seconds,
    )


def _dotenv(settings: dict[str, str]) -> str:
    return "".join(f"{name}='{value}'\n" for name, value in settings.items())


def _long_row() -> Row:
    row = sealed_row(local_encryption(1))
    row["access_token"] = local_encryption(1).encrypt_token(
        "x" * 16_000, row["user_id"], provider="canvas", service_type="default", field=SecretField.ACCESS_TOKEN
    )
    return row


def _children_of(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
