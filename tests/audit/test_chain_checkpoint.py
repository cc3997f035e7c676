"""Chains that a kill ended: the next start names their ends, and later changes are detected."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.audit.chained_lines import digest
from tests.support.audit.trails import (
    OTHER_KEY,
    an_event,
    files,
    interrupt,
    keep,
    members,
    notes,
    opened_trail,
    problems,
    verified,
)

WRITE_AND_HANG = """
import asyncio, sys
from pathlib import Path
from tests.support.audit.trails import an_event, opened_trail

async def main():
    async with opened_trail(Path(sys.argv[1])) as trail:
        for number in range(20):
            await trail.append(an_event(number))
        print("written", flush=True)
        await asyncio.sleep(3600)

asyncio.run(main())
"""


def _killed_chain(folder: Path, *, cut_to: int | None = None) -> Path:
    """Return the file of a process killed after twenty events; `cut_to` lines are left just before the kill."""
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_HANG, folder], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"written\n"
        [file] = files(folder)
        live = verified([file])
        assert (problems(live), notes(live)) == ([], ["live"])
        if cut_to is not None:
            file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:cut_to]))
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    return file


def test_a_killed_chain_is_open_until_the_next_start_names_its_end(tmp_path: Path) -> None:
    killed = _killed_chain(tmp_path)
    [finding] = verified([killed]).findings
    assert (finding.problem, finding.location.line, finding.location.seq) == ("no_end", 21, 21)
    keep(tmp_path, 1)
    report = verified(files(tmp_path))
    assert (report.findings, notes(report), report.events) == ([], ["interrupted"], 21)


def test_a_named_chain_that_was_cut_afterwards_is_truncated(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file)
    keep(tmp_path, 1)
    lines = file.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        for cut in (b"".join(lines[:count]), b"".join([*lines[:count], lines[count][:-1]])):
            file.write_bytes(cut)
            [finding] = verified(files(tmp_path)).findings
            assert (finding.problem, finding.location.seq) == ("truncated", count)


def test_a_tail_cut_before_the_next_start_is_not_detected(tmp_path: Path) -> None:
    """A limit that docs/audit.md states: between a kill and the next start only the missing end shows."""
    [file] = keep(tmp_path, 5)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    assert problems(verified([file])) == ["no_end"]
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_intact


def test_a_live_chain_cut_and_then_killed_is_not_detected(tmp_path: Path) -> None:
    """A limit that docs/audit.md states: only a copy on another machine shows it."""
    _killed_chain(tmp_path, cut_to=3)
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_intact


def test_half_a_line_after_a_kill_is_a_note(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file, torn=b'{"audit":1,"chain":"2026')
    keep(tmp_path, 1)
    report = verified(files(tmp_path))
    assert (report.findings, notes(report)) == ([], ["interrupted", "torn"])
    [torn] = [note for note in report.notes if note.problem == "torn"]
    assert torn.location.line == 7


def test_a_chain_without_lines_is_named_too(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 0)
    file.write_bytes(b"")
    assert problems(verified([file])) == ["no_end"]
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_intact
    file.unlink()
    assert problems(verified(files(tmp_path))) == ["missing_chain"]


def test_each_chain_is_named_once_also_after_its_end(tmp_path: Path) -> None:
    for _ in range(4):
        keep(tmp_path, 1)
    starts = members(files(tmp_path), "start")
    named = [[one["chain"] for one in start["named"]] for start in starts]
    assert named == [[], *([start["chain"]] for start in starts[:-1])]


async def test_a_chain_that_is_being_written_is_not_named(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as first:
        await first.append(an_event())
        async with opened_trail(tmp_path) as second:
            await first.append(an_event())
            await second.append(an_event())
    starts = members(files(tmp_path), "start")
    assert [start["named"] for start in starts] == [[], []]
    assert verified(files(tmp_path)).is_intact


async def test_a_chain_that_rotates_during_other_starts_is_not_named(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, maximum_bytes=4096, sync="off") as writing:
        for number in range(30):
            await writing.append(an_event(number))
            async with opened_trail(tmp_path, sync="off"):
                pass
        [rotating] = {event["chain"] for event in members(files(tmp_path))}
    named = [one["chain"] for start in members(files(tmp_path), "start") for one in start["named"]]
    assert rotating not in named
    assert len(named) == len(set(named)) == 29
    assert verified(files(tmp_path)).is_intact


def test_a_start_signed_with_an_unknown_key_names_nothing(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    keep(tmp_path, 1, key=OTHER_KEY)
    keep(tmp_path, 1)
    starts = members(files(tmp_path), "start")
    assert [len(start["named"]) for start in starts] == [0, 1, 2]  # the last one does not trust the second


@pytest.mark.parametrize(
    "garbage",
    [b"\n", b"anything\n", b"\x00" * 100 + b"\n", b"garbage\n" * 10_000],
    ids=["empty-line", "text", "zeros", "several-blocks"],
)
def test_garbage_does_not_hide_the_last_genuine_line(tmp_path: Path, garbage: bytes) -> None:
    [file] = keep(tmp_path, 2)
    interrupt(file, torn=garbage)
    keep(tmp_path, 1)
    assert set(problems(verified(files(tmp_path)))) == {"not_a_line", "was_followed"}
    [named] = members(files(tmp_path), "start")[-1]["named"]
    assert (named["seq"], named["followed"]) == (3, True)
    assert named["size"] == file.stat().st_size


def test_a_start_does_not_name_a_forged_last_line(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 2)
    interrupt(file)
    last = file.read_bytes().splitlines(keepends=True)[-1]
    forged = last.replace(b'"seq":3,', b'"seq":4,')
    file.write_bytes(file.read_bytes() + forged)
    keep(tmp_path, 1)
    [named] = members(files(tmp_path), "start")[-1]["named"]
    assert (named["seq"], named["hash"]) == (3, digest(last[:-1]))


@pytest.mark.parametrize(
    "appended", ["garbage", "half-a-line-and-garbage", "its-first-line", "all-its-lines", "a-file"]
)
def test_appended_lines_do_not_let_a_tail_be_cut_later(tmp_path: Path, appended: str) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    beside = file.with_name(file.name.replace(".000001.", ".000002."))
    if appended == "a-file":
        beside.write_bytes(b"".join(lines[:2]))
    else:
        additions = {"garbage": b"x\n", "half-a-line-and-garbage": lines[0][:-9] + b"\n", "its-first-line": lines[0]}
        file.write_bytes(content + additions.get(appended, content))
    keep(tmp_path, 1)
    assert not verified(files(tmp_path)).is_intact
    beside.unlink(missing_ok=True)
    for count in range(len(lines) + 1):
        for torn in (b"", lines[0][:-1]):
            file.write_bytes(b"".join(lines[:count]) + torn)
            found = problems(verified(files(tmp_path)))
            assert found, (count, torn)
            if count < len(lines) and "garbage" in appended:
                assert "truncated" in found


@pytest.mark.parametrize("edited", [b"{{", b"x"])
@pytest.mark.parametrize("appended", [0, 1])
def test_an_edited_first_line_does_not_let_a_tail_be_cut_later(tmp_path: Path, edited: bytes, appended: int) -> None:
    [file] = keep(tmp_path, 3)
    interrupt(file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(edited + content[1:] + lines[0] * appended)
    keep(tmp_path, 1)
    for count in range(1, len(lines)):
        file.write_bytes(b"".join(lines[:count]))
        assert not verified(files(tmp_path)).is_intact
