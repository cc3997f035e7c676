"""`token-vault audit`, and the trail's settings in other commands."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from app.cli.doctor import audit_findings
from app.cli.doctor_finding import Severity
from app.config.settings import Settings
from tests.support.audit.trails import KEY_TEXT, an_event, chain_of, files, keep, opened_trail
from tests.support.process.home import new_home, token_vault

SETTINGS = {"AUDIT_LOG": "audit.jsonl", "AUDIT_KEY": KEY_TEXT}


def _audit(*arguments: object, folder: Path, **settings: str) -> CompletedProcess[str]:
    """Run `token-vault audit` with an auditor's settings: those of the trail alone."""
    return token_vault("audit", *map(str, arguments), folder=folder, settings=SETTINGS | settings)


def test_an_intact_trail_exits_with_0(tmp_path: Path) -> None:
    keep(tmp_path, 3)
    done = _audit("verify", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Intact: 3 events in 1 chain and 1 file.\n", "")


async def test_verify_counts_the_chains_that_are_still_open(tmp_path: Path) -> None:
    def last_line() -> str:
        return _audit("verify", folder=tmp_path).stdout.splitlines()[-1]

    async with opened_trail(tmp_path) as trail:
        await trail.append(an_event())
        alone = await asyncio.to_thread(last_line)
        async with opened_trail(tmp_path):
            both = await asyncio.to_thread(last_line)
        beside = await asyncio.to_thread(last_line)
    ending = "still open, and lines cut off at the end would not show."
    assert alone == f"Intact: 1 event in 1 chain and 1 file; the chain is {ending}"
    assert both == f"Intact: 1 event in 2 chains and 2 files; 2 of the chains are {ending}"
    assert beside == f"Intact: 1 event in 2 chains and 2 files; 1 of the chains is {ending}"


def test_a_finding_exits_with_1_and_shows_its_location(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 3)
    file.write_bytes(file.read_bytes().replace(b'"seq":3,"prev"', b'"seq":7,"prev"'))
    done = _audit("verify", file, folder=tmp_path)
    assert done.returncode == 1
    finding, *_ = done.stdout.splitlines()
    chain = chain_of(file)
    assert finding.startswith(f"FAIL  {file}:3, chain {chain}, seq 7: wrong_mac: ")
    assert "Not intact: 1 finding; 2 events in 1 chain and 1 file." in done.stdout


def test_verify_needs_the_key_that_signed_the_lines(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    other = "A" * 43 + "="
    assert _audit("verify", folder=tmp_path, AUDIT_KEY=other).returncode == 1
    done = _audit("verify", folder=tmp_path, AUDIT_KEY=other, AUDIT_PREVIOUS_KEYS=json.dumps([KEY_TEXT]))
    assert done.returncode == 0


def test_partial_accepts_a_part_of_the_trail(tmp_path: Path) -> None:
    first, *_ = keep(tmp_path, 10, maximum_bytes=4096)
    assert _audit("verify", first, folder=tmp_path).returncode == 1
    assert _audit("verify", "--partial", first, folder=tmp_path).returncode == 0


def test_a_file_without_audit_lines_exits_with_1(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a log line\n")
    done = _audit("verify", "log", folder=tmp_path)
    assert done.returncode == 1
    assert "Not verified: 1 file without a line of an audit trail." in done.stdout


@pytest.mark.parametrize(
    ("settings", "arguments", "named"),
    [
        ({}, ["no-such-file"], "no-such-file"),
        ({"AUDIT_LOG": "-"}, [], "AUDIT_LOG"),
        ({"AUDIT_LOG": "none/audit.jsonl"}, [], "none"),
        ({"AUDIT_KEY": ""}, ["x"], "AUDIT_KEY"),
        ({"AUDIT_KEY": "tooshort"}, ["x"], "AUDIT_KEY"),
        ({"AUDIT_PREVIOUS_KEYS": "{"}, ["x"], "AUDIT_PREVIOUS_KEYS"),
    ],
    ids=["missing-file", "stream", "missing-directory", "no-key", "short-key", "keys-that-are-not-json"],
)
def test_a_trail_that_cannot_be_verified_exits_with_2(
    tmp_path: Path, settings: dict[str, str], arguments: list[str], named: str
) -> None:
    done = _audit("verify", *arguments, folder=tmp_path, **settings)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert named in done.stderr
    assert "tooshort" not in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("command", ["verify", "show"])
def test_an_unreadable_file_is_named(tmp_path: Path, command: str) -> None:
    done = _audit(command, "/proc/self/mem", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("Error: /proc/self/mem cannot be read: ")


@pytest.mark.parametrize("since", ["yesterday", "999999d", "0001-01-01T00:00:00+14:00"], ids=["word", "age", "year-0"])
def test_an_invalid_time_exits_with_2(tmp_path: Path, since: str) -> None:
    keep(tmp_path, 1)
    done = _audit("show", "--since", since, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: --since must be a time")


def test_an_env_file_that_is_not_text_exits_with_2(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"AUDIT_LOG=\xff")
    done = _audit("verify", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "Error: .env cannot be read as UTF-8 text\n")


def test_show_prints_matching_events_in_order_of_time(tmp_path: Path) -> None:
    keep(tmp_path, 3)
    keep(tmp_path, 2)
    shown = [json.loads(line) for line in _audit("show", "--json", folder=tmp_path).stdout.splitlines()]
    assert len(shown) == 5
    assert [event["time"] for event in shown] == sorted(event["time"] for event in shown)
    user = "00000000-0000-0000-0000-000000000001"
    arguments = ["--user", user, "--service", "tests", "--operation", "reveal", "--outcome", "success", "--since", "1h"]
    heading, *rows = _audit("show", *arguments, folder=tmp_path).stdout.splitlines()
    assert heading.split()[:3] == ["TIME", "SERVICE", "KEY"]
    assert len(rows) == 2
    assert all(user in row and "nightly-sync" in row for row in rows)


def test_show_says_that_no_event_matches(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    done = _audit("show", "--service", "x", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No such event.\n")


def test_show_prints_no_control_characters(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 1)
    file.write_bytes(file.read_bytes().replace(b'"service":"tests"', b'"service":"\\u001b[2J"'))
    assert "\x1b" not in _audit("show", folder=tmp_path).stdout


# text that replaces a purpose, and whether `show` can still show the line
EDITED = {
    b'"purpose":' + b"[" * 200_000: False,
    b'"purpose":' + b"[" * 30_000: False,
    b'"purpose":' + b"[" * 500 + b"]" * 500: False,
    b'"purpose":' + b"9" * 5_000: False,
    b'"purpose":{}': False,
    b'"purpose":"' + b"a" * 70_000 + b'"': False,
    b'"revealed":5': True,
    b'"revealed":null,"provider":7,"omitted":"\\ud800"': True,
    b'"seq":"x","time":[],"chain":1': True,
    b'"service":"innocent"': True,
    b'"genuine":true': True,
}


def test_show_marks_lines_that_are_not_genuine_and_counts_them(tmp_path: Path) -> None:
    [file] = keep(tmp_path, len(EDITED) + 1)
    lines = file.read_bytes().splitlines(keepends=True)
    for number, edit in enumerate(EDITED, start=1):
        lines[number] = lines[number].replace(b'"purpose":"nightly-sync"', edit)
    file.write_bytes(b"".join(lines))
    done = _audit("show", folder=tmp_path)
    shown = sum(EDITED.values())
    assert done.returncode == 1
    assert [row.startswith("!") for row in done.stdout.splitlines()[1:]].count(True) == shown
    assert len(done.stdout.splitlines()) == 1 + shown + 1
    assert done.stderr == (
        f"{len(EDITED)} lines are not genuine, {len(EDITED) - shown} of them cannot be shown: docs/audit.md\n"
    )
    printed = [json.loads(line) for line in _audit("show", "--json", folder=tmp_path).stdout.splitlines()]
    assert [event.get("genuine") for event in printed].count(False) == shown
    assert [event.get("genuine") for event in printed].count(None) == 1


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (b'"service":"innocent"', "1 line is not genuine"),
        (b'"purpose":{}', "1 line is not genuine and cannot be shown"),
    ],
)
def test_show_says_one_doubtful_line_in_the_singular(tmp_path: Path, edit: bytes, words: str) -> None:
    [file] = keep(tmp_path, 1)
    file.write_bytes(file.read_bytes().replace(b'"purpose":"nightly-sync"', edit))
    done = _audit("show", "--json", folder=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"{words}: docs/audit.md\n")


def test_show_without_a_key_says_that_nothing_was_checked(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 1)
    file.write_bytes(file.read_bytes().replace(b'"service":"tests"', b'"service":"other"'))
    done = _audit("show", file, folder=tmp_path, AUDIT_KEY="")
    assert (done.returncode, done.stderr) == (0, "Nothing was checked: AUDIT_KEY is not set.\n")
    assert "other" in done.stdout


def test_show_accepts_earlier_keys(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    keys = {"AUDIT_KEY": "A" * 43 + "=", "AUDIT_PREVIOUS_KEYS": json.dumps([KEY_TEXT])}
    done = _audit("show", folder=tmp_path, **keys)
    assert (done.returncode, done.stderr) == (0, "")
    assert "!" not in done.stdout


def test_a_trail_without_a_key_prevents_the_start(tmp_path: Path) -> None:
    home = new_home(tmp_path, AUDIT_LOG="audit.jsonl")
    done = token_vault("serve", folder=tmp_path, settings=home.settings)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert "AUDIT_KEY" in done.stderr


def test_a_directory_that_cannot_be_created_prevents_the_start(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    home = new_home(tmp_path, AUDIT_LOG="taken/audit.jsonl", AUDIT_KEY=KEY_TEXT)
    done = token_vault("serve", folder=tmp_path, settings=home.settings)
    assert done.returncode == 2
    assert done.stderr == "Error: AUDIT_LOG: taken cannot be written: File exists\n"
    assert "FAIL  audit" in token_vault("doctor", folder=tmp_path, settings=home.settings).stdout


@pytest.mark.parametrize(("mode", "warned"), [(0o700, 0), (0o755, 0), (0o775, 1), (0o777, 1)])
def test_doctor_warns_about_a_directory_others_can_write(tmp_path: Path, mode: int, warned: int) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit").chmod(mode)
    settings = Settings(  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        _env_file=None, TOKEN_ENCRYPTION_KEY=KEY_TEXT, AUDIT_KEY=KEY_TEXT, AUDIT_LOG=str(tmp_path / "audit/audit.jsonl")
    )
    severities = [found.severity for found in audit_findings(settings, str(tmp_path / "audit/audit.jsonl"))]
    assert severities == [Severity.OK, *[Severity.WARNING] * warned]


def test_init_turns_the_trail_on_with_a_separate_key(tmp_path: Path) -> None:
    token_vault("init", folder=tmp_path)
    lines = dict(line.split("=", 1) for line in (tmp_path / ".env").read_text().splitlines() if "=" in line)
    assert lines["AUDIT_LOG"] == "data/audit/audit.jsonl"
    assert lines["AUDIT_KEY"] != lines["TOKEN_ENCRYPTION_KEY"]
    shutil.rmtree(tmp_path / "data")
    assert files(tmp_path) == []
