"""Every change to an audit trail is found, with its location."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from app.audit.chained_lines import Chain
from app.audit.verify import VerificationReport
from tests.support.audit.trails import (
    KEY,
    OTHER_KEY,
    chain_of,
    files,
    interrupt,
    keep,
    log_files,
    problems,
    verified,
)
from tests.support.sizes import size

EVENTS = 6
STEP = size(13, 1)


@pytest.fixture
def trail(tmp_path: Path) -> Path:
    """Three chains: one that ended, in two files; one that was killed; and one that started last and names both."""
    folder = tmp_path / "trail"
    assert len(keep(folder, EVENTS, maximum_bytes=4096)) == 2
    [killed] = keep(folder, 3)
    interrupt(killed)
    keep(folder, 2)
    report = verified(files(folder))
    assert (report.findings, report.chains, report.events) == ([], 3, EVENTS + 5)
    return folder


def _lines(file: Path) -> list[bytes]:
    return file.read_bytes().splitlines(keepends=True)


def _found_at(report: VerificationReport, file: Path, line: int) -> bool:
    return any((finding.location.file, finding.location.line) == (file, line) for finding in report.findings)


def test_every_flipped_byte_is_found_in_its_line(trail: Path) -> None:
    """Every byte of the first event and every 13th of the others; every byte in `make soak`."""
    all_files = files(trail)
    unnoticed = []
    misplaced = []
    start, event, *_ = _lines(all_files[0])
    for file in all_files:
        content = file.read_bytes()
        positions = set(range(0, len(content), STEP))
        if file == all_files[0]:
            positions |= set(range(len(start), len(start) + len(event)))
        for position in sorted(positions):
            line = content.count(b"\n", 0, position) + 1
            changed = bytearray(content)
            changed[position] ^= 0x20 if position % 2 else 0x01
            file.write_bytes(changed)
            report = verified(all_files)
            if report.is_intact:
                unnoticed.append((file.name, position))
            # without the last line feed of a file, its line is half a line, and is missing where the chain continues
            elif not _found_at(report, file, line) and position != len(content) - 1:
                misplaced.append((file.name, position))
        file.write_bytes(content)
    assert (unnoticed, misplaced) == ([], [])


def _dropped(lines: list[bytes], at: int) -> list[bytes]:
    return lines[:at] + lines[at + 1 :]


def _swapped(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]


def _duplicated(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[: at + 1], *lines[at:]]


def _moved_to_the_end(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], *lines[at + 1 :], lines[at]]


def _cut_before(lines: list[bytes], at: int) -> list[bytes]:
    return lines[:at]


def _cut_inside(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at][:-5]]


def _without_its_line_feed(lines: list[bytes], at: int) -> list[bytes]:
    return [*lines[:at], lines[at][:-1], *lines[at + 1 :]]


@pytest.mark.parametrize(
    "change",
    [_dropped, _swapped, _duplicated, _moved_to_the_end, _cut_before, _cut_inside, _without_its_line_feed],
    ids=lambda change: change.__name__.strip("_"),
)
def test_every_change_of_complete_lines_is_found_in_its_chain(
    trail: Path, change: Callable[[list[bytes], int], list[bytes]]
) -> None:
    all_files = files(trail)
    for file in all_files:
        content = file.read_bytes()
        lines = content.splitlines(keepends=True)
        last = len(lines) - (1 if change in {_swapped, _moved_to_the_end} else 0)
        for at in range(last):
            file.write_bytes(b"".join(change(lines, at)))
            report = verified(all_files)
            assert not report.is_intact, (file.name, at)
            assert chain_of(file) in {finding.location.chain for finding in report.findings}, (file.name, at)
        file.write_bytes(content)


def test_a_removed_line_is_reported_by_its_seq(trail: Path) -> None:
    file = files(trail)[0]
    file.write_bytes(b"".join(_dropped(_lines(file), 2)))
    [finding] = verified(files(trail)).findings
    location = finding.location
    assert (finding.problem, location.file, location.line, location.seq) == ("missing", file, 3, 4)
    assert "seq 3 is missing" in finding.detail


def test_an_edited_line_is_one_finding(trail: Path) -> None:
    file = files(trail)[0]
    lines = _lines(file)
    lines[2] = lines[2].replace(b'"outcome":"success"', b'"outcome":"forbidden"')
    file.write_bytes(b"".join(lines))
    [finding] = verified(files(trail)).findings
    assert (finding.problem, finding.location.line, finding.location.seq) == ("wrong_mac", 3, 3)


def test_a_chain_cannot_be_made_again_without_the_key(trail: Path) -> None:
    file = files(trail)[0]
    lines = _lines(file)
    forger = Chain(key=OTHER_KEY)
    forger.id = chain_of(file)
    forger._head = f'{{"audit":1,"chain":"{forger.id}","seq":'  # noqa: SLF001  a forger has the code too
    forged = forger.sign(
        [line.decode().partition('",')[2].partition('",')[2].rpartition(',"mac"')[0] for line in lines]
    )
    file.write_bytes(b"".join(line + b"\n" for line in forged))
    assert problems(verified(files(trail))).count("wrong_mac") == len(lines)


def test_one_line_cannot_be_replaced_alone_even_with_the_key(trail: Path) -> None:
    file = files(trail)[0]
    lines = _lines(file)
    signed = lines[2].replace(b'"outcome":"success"', b'"outcome":"forbidden"').rpartition(b',"mac"')[0]
    lines[2] = signed + b',"mac":"' + KEY.mac(signed) + b'"}\n'
    file.write_bytes(b"".join(lines))
    [finding] = verified(files(trail)).findings
    assert (finding.problem, finding.location.line) == ("wrong_prev", 4)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["first-file", "second-file", "killed-chain"])
def test_a_removed_file_is_found(trail: Path, number: int) -> None:
    file = files(trail)[number]
    file.unlink()
    report = verified(files(trail))
    assert not report.is_intact
    assert {finding.location.chain for finding in report.findings} == {chain_of(file)}


def test_a_removed_chain_is_found_by_the_start_that_names_it(trail: Path) -> None:
    for file in files(trail)[:2]:
        file.unlink()
    [finding] = verified(files(trail)).findings
    assert (finding.problem, finding.location.seq) == ("missing_chain", EVENTS + 2)


def test_removal_of_the_newest_chain_shows_after_the_next_start(trail: Path) -> None:
    """A limit that docs/audit.md states: no start names a chain before the next one."""
    last = files(trail)[-1]
    content = last.read_bytes()
    last.unlink()
    # the killed chain, which this one named, is open again
    assert problems(verified(files(trail))) == ["no_end"]
    last.write_bytes(content)
    keep(trail, 1)
    last.unlink()
    assert "missing_chain" in problems(verified(files(trail)))


def test_a_line_of_another_chain_is_found(trail: Path) -> None:
    first, *_, last = files(trail)
    lines = _lines(first)
    first.write_bytes(b"".join([*lines[:2], _lines(last)[1], *lines[2:]]))
    [finding] = verified(files(trail)).findings
    assert (finding.problem, finding.location.file, finding.location.line) == ("foreign_line", first, 3)


def test_inserted_text_is_found(trail: Path) -> None:
    file = files(trail)[0]
    lines = _lines(file)
    file.write_bytes(b"".join([*lines[:2], b"nothing happened here\n", *lines[2:]]))
    [finding] = verified(files(trail)).findings
    assert (finding.problem, finding.location.file, finding.location.line) == ("not_a_line", file, 3)


def test_lines_after_the_end_are_found(trail: Path) -> None:
    last = files(trail)[-1]
    for added in (_lines(last)[1], b"half a li"):
        content = last.read_bytes()
        last.write_bytes(content + added)
        assert not verified(files(trail)).is_intact
        last.write_bytes(content)


def test_files_may_be_given_in_any_order_and_directory(trail: Path, tmp_path: Path) -> None:
    copied = [tmp_path / f"copy-{number}" / file.name for number, file in enumerate(files(trail))]
    for source, target in zip(files(trail), copied, strict=True):
        target.parent.mkdir()
        shutil.copy(source, target)
    assert verified(copied[::-1]).is_intact


def test_partial_reports_no_lines_of_other_files(trail: Path) -> None:
    for file in files(trail):
        assert verified([file], partial=True).is_intact
        assert not verified([file]).is_intact


def test_partial_still_reports_changes_inside_a_file(trail: Path) -> None:
    first = files(trail)[0]
    first.write_bytes(b"".join(_dropped(_lines(first), 2)))
    assert problems(verified([first], partial=True)) == ["missing"]


def test_a_chain_among_log_lines_is_verified(trail: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    noise = [b'{"event": "started"}\n', b"Traceback (most recent call last):\n", b"\xff\xfe\n"]
    lines = [line for file in files(trail)[:2] for line in _lines(file)]
    mixed = [part for line in lines for part in (*noise, line)]
    log.write_bytes(b"".join(mixed))
    assert verified([log]).is_intact
    for number in range(len(lines)):
        log.write_bytes(b"".join(mixed[: 4 * number + 3] + mixed[4 * number + 4 :]))
        assert not verified([log]).is_intact, number


def test_lines_signed_with_an_earlier_key_need_that_key(tmp_path: Path) -> None:
    earlier = keep(tmp_path, 2, key=OTHER_KEY)
    later = keep(tmp_path, 2)
    assert verified([*earlier, *later], keys=[KEY, OTHER_KEY]).is_intact
    assert "wrong_mac" in problems(verified([*earlier, *later]))


def test_a_chain_that_continues_after_its_checkpoint_is_found(tmp_path: Path) -> None:
    """A file system without locks has this effect, because a live chain looks dead there."""
    [file] = keep(tmp_path, 5)
    content = file.read_bytes()
    file.write_bytes(b"".join(_lines(file)[:4]))
    keep(tmp_path, 1)
    file.write_bytes(content)
    [finding] = verified(files(tmp_path)).findings
    assert (finding.problem, finding.location.file, finding.location.seq) == ("after_checkpoint", file, 7)


def test_a_last_line_other_than_the_checkpoint_s_is_found(tmp_path: Path) -> None:
    """The key lets an editor sign another last line, but the start still names the original one."""
    [file] = keep(tmp_path, 2)
    interrupt(file)
    keep(tmp_path, 1)
    lines = _lines(file)
    signed = lines[-1].replace(b'"outcome":"success"', b'"outcome":"forbidden"').rpartition(b',"mac"')[0]
    file.write_bytes(b"".join([*lines[:-1], signed + b',"mac":"' + KEY.mac(signed) + b'"}\n']))
    [finding] = verified(files(tmp_path)).findings
    assert (finding.problem, finding.location.seq) == ("after_checkpoint", 3)


@pytest.mark.parametrize(("kinds", "at"), [(["event", "end"], 1), (["start", "start", "end"], 2)])
def test_only_the_first_line_is_a_start(tmp_path: Path, kinds: list[str], at: int) -> None:
    chain = Chain(key=KEY)
    file = log_files(tmp_path).file(chain.id, 1)
    file.write_bytes(b"".join(line + b"\n" for line in chain.sign([f'"kind":"{kind}"' for kind in kinds])))
    [finding] = verified([file]).findings
    assert (finding.problem, finding.location.line, finding.location.seq) == ("wrong_start", at, at)


def test_partial_notes_the_lines_of_other_files(trail: Path) -> None:
    first, second, killed, _ = files(trail)
    ends_at = len(_lines(first))
    [note] = verified([first], partial=True).notes
    assert (note.problem, note.location.seq) == ("goes_on", ends_at)
    [note] = verified([second], partial=True).notes
    assert (note.problem, note.location.line) == ("begins_later", 1)
    assert f"seq 1 to {ends_at} are not in these files" in note.detail
    found = verified([first, killed], partial=True).notes
    assert [note.problem for note in found] == ["goes_on", "goes_on"]
    assert f"saw it end with seq {EVENTS + 2}; seq {ends_at + 1} " in found[0].detail


def test_a_file_with_several_names_is_read_once(trail: Path, tmp_path: Path) -> None:
    all_files = files(trail)
    (tmp_path / "linked").symlink_to(trail)
    (tmp_path / "same").hardlink_to(all_files[0])
    again = [tmp_path / "same", *all_files, *((tmp_path / "linked" / file.name) for file in all_files)]
    report = verified(again)
    assert (report.findings, report.files, report.chains, report.events) == ([], len(all_files), 3, EVENTS + 5)
    assert verified([trail / ".." / "trail" / all_files[2].name, *all_files]).is_intact


def test_a_file_in_place_of_another_chain_s_file_is_found(trail: Path) -> None:
    first, *_, last = files(trail)
    last.unlink()
    last.hardlink_to(first)
    assert "foreign_line" in problems(verified(files(trail)))
