"""Chains that a kill has ended: who sees it, and what a later cut looks like."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.audit.findings import Report
from app.audit.lines import Chain, digest
from tests.support.audit.trails import (
    KEY,
    KEY_TEXT,
    OTHER_KEY,
    an_event,
    family,
    files,
    interrupt,
    keep,
    members,
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
        await asyncio.sleep(60)

asyncio.run(main())
"""


def _killed_chain(folder: Path, *, cut_to: int | None = None) -> Path:
    """Return the file of a process that was killed with SIGKILL after twenty events, and maybe cut just before."""
    before = files(folder)
    process = subprocess.Popen([sys.executable, "-c", WRITE_AND_HANG, folder], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == b"written\n"
    [file] = [path for path in files(folder) if path not in before]
    live = verified([file])
    assert (problems(live), [note.problem for note in live.notes]) == ([], ["live"])
    if cut_to is not None:
        file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:cut_to]))
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    return file


def _notes(report: Report) -> list[str]:
    return [note.problem for note in report.notes]


def test_a_killed_chain_is_open_until_the_next_start_has_named_its_last_line(tmp_path: Path) -> None:
    killed = _killed_chain(tmp_path)
    [finding] = verified([killed]).findings
    assert (finding.problem, finding.place.line, finding.place.seq) == ("no_end", 21, 21)
    keep(tmp_path, 1)
    report = verified(files(tmp_path))
    assert (report.findings, _notes(report), report.events) == ([], ["interrupted"], 21)


def test_a_named_chain_that_was_cut_afterwards_is_truncated(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file)
    keep(tmp_path, 1)
    lines = file.read_bytes().splitlines(keepends=True)
    for count in range(len(lines)):
        for cut in (b"".join(lines[:count]), b"".join([*lines[:count], lines[count][:-1]])):
            file.write_bytes(cut)
            [finding] = verified(files(tmp_path)).findings
            assert (finding.problem, finding.place.seq) == ("truncated", count)


def test_a_tail_that_is_cut_before_the_next_start_is_not_seen_to_be_missing(tmp_path: Path) -> None:
    """A limit that docs/audit.md states: between a kill and the next start only the open end is seen."""
    [file] = keep(tmp_path, 5)
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:3]))
    assert problems(verified([file])) == ["no_end"]
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_whole


def test_a_live_chain_that_is_cut_and_then_killed_is_not_seen_to_be_short(tmp_path: Path) -> None:
    """A limit that docs/audit.md states: only a copy that has left the machine tells."""
    _killed_chain(tmp_path, cut_to=3)
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_whole


def test_half_a_line_after_a_kill_is_told_and_is_no_finding(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file, torn=b'{"audit":1,"chain":"2026')
    keep(tmp_path, 1)
    report = verified(files(tmp_path))
    assert (report.findings, _notes(report)) == ([], ["interrupted", "torn"])
    [torn] = [note for note in report.notes if note.problem == "torn"]
    assert torn.place.line == 7


def test_a_chain_without_a_single_line_is_named_too(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 0)
    file.write_bytes(b"")
    assert problems(verified([file])) == ["no_end"]
    keep(tmp_path, 1)
    assert verified(files(tmp_path)).is_whole
    file.unlink()
    assert problems(verified(files(tmp_path))) == ["missing_chain"]


def test_each_chain_is_named_once_and_those_that_ended_too(tmp_path: Path) -> None:
    for _ in range(4):
        keep(tmp_path, 1)
    named = [[one["chain"] for one in start["named"]] for start in members(files(tmp_path), "start")]
    chains = [start["chain"] for start in members(files(tmp_path), "start")]
    assert sorted(map(len, named)) == [0, 1, 1, 1]
    assert sorted(one for names in named for one in names) == sorted(set(chains) - {_last(tmp_path)})


def _last(folder: Path) -> str:
    named = {one["chain"] for start in members(files(folder), "start") for one in start["named"]}
    [last] = {start["chain"] for start in members(files(folder), "start")} - named
    return str(last)


async def test_a_chain_that_is_being_written_is_not_named(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as first:
        await first.append(an_event())
        async with opened_trail(tmp_path) as second:
            await first.append(an_event())
            await second.append(an_event())
    starts = members(files(tmp_path), "start")
    assert [start["named"] for start in starts] == [[], []]
    assert verified(files(tmp_path)).is_whole


async def test_a_chain_that_rotates_while_others_start_is_never_taken_for_dead(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, maximum_bytes=4096) as writing:
        for number in range(30):
            await writing.append(an_event(number))
            async with opened_trail(tmp_path):
                pass
        [mine] = {event["chain"] for event in members(files(tmp_path))}
    named = [one["chain"] for start in members(files(tmp_path), "start") for one in start["named"]]
    assert mine not in named
    assert len(named) == len(set(named)) == 29
    assert verified(files(tmp_path)).is_whole


def test_a_start_under_an_unknown_key_names_nothing(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    keep(tmp_path, 1, key=OTHER_KEY)
    keep(tmp_path, 1)
    starts = {start["signing_key"]: start for start in members(files(tmp_path), "start")}
    # the last one names both: what the other said, it could not believe
    assert max(len(start["named"]) for start in starts.values()) == 2


@pytest.mark.parametrize("garbage", [b"\n", b"anything\n", b"\x00" * 100 + b"\n", b"garbage\n" * 10_000])
def test_a_chain_that_ends_with_garbage_is_named_by_its_last_genuine_line(tmp_path: Path, garbage: bytes) -> None:
    [file] = keep(tmp_path, 2)
    interrupt(file, torn=garbage)
    keep(tmp_path, 1)
    assert set(problems(verified(files(tmp_path)))) == {"not_a_line", "was_followed"}
    [named] = members(files(tmp_path), "start")[-1]["named"]
    assert (named["seq"], named["followed"]) == (3, True)
    assert named["size"] == file.stat().st_size


def test_a_forged_line_at_the_end_is_not_what_the_next_start_names(tmp_path: Path) -> None:
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
def test_no_tail_can_be_cut_unseen_by_blinding_the_next_start(tmp_path: Path, appended: str) -> None:
    [file] = keep(tmp_path, 5)
    interrupt(file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    beside = file.with_name(file.name.replace(".000001.", ".000002."))
    if appended == "a-file":
        beside.write_bytes(b"".join(lines[:2]))
    else:
        blinds = {"garbage": b"x\n", "half-a-line-and-garbage": lines[0][:-9] + b"\n", "its-first-line": lines[0]}
        file.write_bytes(content + blinds.get(appended, content))
    keep(tmp_path, 1)
    assert not verified(files(tmp_path)).is_whole
    beside.unlink(missing_ok=True)
    for count in range(len(lines) + 1):
        for torn in (b"", lines[0][:-1]):
            file.write_bytes(b"".join(lines[:count]) + torn)
            assert not verified(files(tmp_path)).is_whole, (count, torn)
            if count < len(lines) and "garbage" in appended:
                assert "truncated" in problems(verified(files(tmp_path)))


@pytest.mark.parametrize("edited", [b"{{", b"x"])
@pytest.mark.parametrize("appended", [0, 1])
def test_a_first_line_that_was_edited_at_the_next_start_blinds_nobody(
    tmp_path: Path, edited: bytes, appended: int
) -> None:
    [file] = keep(tmp_path, 3)
    interrupt(file)
    content = file.read_bytes()
    lines = content.splitlines(keepends=True)
    file.write_bytes(edited + content[1:] + lines[0] * appended)
    keep(tmp_path, 1)
    for count in range(1, len(lines)):
        file.write_bytes(b"".join(lines[:count]))
        assert not verified(files(tmp_path)).is_whole


def test_what_an_older_start_could_not_read_is_a_finding_for_good(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 2)
    chain = Chain(key=KEY)
    named = [{"chain": file.name.split(".")[1], "seq": -1, "hash": "0" * 64}]
    [line] = chain.sealed([f'"kind":"start","named":{json.dumps(named, separators=(",", ":"))}'])
    family(tmp_path).file(chain.id, 1).write_bytes(line + b"\n")
    report = verified(files(tmp_path))
    assert {finding.problem for finding in report.findings} == {"was_followed", "after_witness", "no_end"}


def test_the_key_is_not_in_the_files(tmp_path: Path) -> None:
    [file] = keep(tmp_path, 2)
    assert KEY_TEXT.encode() not in file.read_bytes()
