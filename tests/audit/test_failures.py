"""A trail that cannot be written: refused in bounded time, noticed, and taken up again without a restart.

A full disk is a limit on the size of files (RLIMIT_FSIZE), which cuts a write short as a full disk does, and
`/dev/full`; a small file system of its own would need root. A directory that may not be written is one for another
user: tests that run as root give up their rights for that moment.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.audit.file_target import LOOK_SECONDS
from app.audit.refusal_limiter import RefusalLimiter
from app.audit.stream_target import StreamTarget
from app.audit.trail import AuditLog
from app.errors import AuditUnavailable, Unauthenticated
from app.observability.counters import InMemoryAuditCounters
from app.tokens.models import Caller
from tests.support.audit.trails import an_event, append_all, files, members, opened_trail, problems, verified

RECOVERY_SECONDS = 5.0
NOBODY = 65534


@contextmanager
def _file_size_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def _refuses_at_once(trail: AuditLog) -> None:
    with pytest.raises(AuditUnavailable):
        trail.require_open()
    with pytest.raises(AuditUnavailable):
        await trail.check()


async def _recovers(trail: AuditLog) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                trail.require_open()
            except AuditUnavailable:
                await asyncio.sleep(0.05)
            else:
                break
    await trail.check()
    await trail.append(an_event(99))


@pytest.mark.parametrize("sync", ["always", "interval", "off"])
async def test_a_full_disk_refuses_leaves_no_half_line_and_is_left_behind(tmp_path: Path, sync: str) -> None:
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, sync=sync, counters=counters) as trail:  # type: ignore[arg-type]  # each of them is one
        await trail.append(an_event(1))
        [file] = files(tmp_path)
        whole = file.read_bytes()
        with _file_size_limit(len(whole) + 300):  # room for half a line
            with pytest.raises(AuditUnavailable):
                await trail.append(an_event(2))
            await _refuses_at_once(trail)
            assert file.read_bytes() == whole
        await _recovers(trail)
    report = verified(files(tmp_path))
    assert (report.findings, report.notes, len(files(tmp_path))) == ([], [], 1)
    assert [event["user_id"][-2:] for event in members(files(tmp_path))] == ["01", "02", "63"]
    [resumed] = members(files(tmp_path), "resumed")
    assert resumed["refused"] >= 2
    assert counters.counts["failures.EFBIG"] >= 1
    assert counters.counts["events"] == 3


async def test_a_device_that_is_full_refuses(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, target=StreamTarget(path=Path("/dev/full"))) as trail:
        await _refuses_at_once(trail)
        with pytest.raises(AuditUnavailable):
            await trail.append(an_event())


@contextmanager
def _without_rights() -> Iterator[Path]:
    """A directory of which nothing may be written, in this block, and that may be afterwards."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        shutil.rmtree(folder)


async def test_a_directory_that_may_not_be_written_refuses_until_it_may() -> None:
    with _without_rights() as folder:
        async with opened_trail(folder) as trail:
            await _refuses_at_once(trail)
            with pytest.raises(AuditUnavailable):
                await trail.append(an_event())
            if os.getuid() == 0:
                os.seteuid(0)
            folder.chmod(0o755)
            await _recovers(trail)
        assert verified(files(folder)).findings == []


async def test_a_deleted_file_is_replaced_and_missed(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        await append_all(trail, [an_event(1), an_event(2)])
        [file] = files(tmp_path)
        file.unlink()
        await asyncio.sleep(LOOK_SECONDS)
        await append_all(trail, [an_event(3), an_event(4)])
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["3", "4"]
    [finding] = verified(files(tmp_path)).findings
    assert (finding.problem, finding.words) == ("missing", "before it seq 1 to 3 are missing")


async def test_a_deleted_directory_is_made_again_and_its_lines_missed(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    async with opened_trail(folder) as trail:
        await trail.append(an_event(1))
        shutil.rmtree(folder)
        await asyncio.sleep(LOOK_SECONDS)
        await trail.append(an_event(2))
    assert problems(verified(files(folder))) == ["missing"]


async def test_a_file_that_somebody_else_has_written_to_is_written_no_further(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        await trail.append(an_event(1))
        [file] = files(tmp_path)
        with file.open("ab") as other:
            other.write(b"half a")
        await asyncio.sleep(LOOK_SECONDS)
        await trail.append(an_event(2))
    assert file.read_bytes().endswith(b"half a")
    report = verified(files(tmp_path))
    assert (problems(report), len(files(tmp_path))) == ([], 2)
    assert [note.problem for note in report.notes] == ["torn"]


async def test_a_reader_that_does_not_read_holds_nobody_for_long(tmp_path: Path) -> None:
    """A FIFO whose reader sleeps is a disk that hangs: the write does not return."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    counters = InMemoryAuditCounters()
    try:
        async with opened_trail(
            tmp_path, target=StreamTarget(path=fifo), bound_seconds=0.5, counters=counters
        ) as trail:
            began = time.monotonic()
            outcomes = await asyncio.gather(*(trail.append(an_event(n)) for n in range(300)), return_exceptions=True)
            assert time.monotonic() - began < 2
            assert {type(one) for one in outcomes} <= {AuditUnavailable, type(None)}
            assert AuditUnavailable in {type(one) for one in outcomes}
            await _refuses_at_once(trail)
            assert counters.counts["failures.slow"] == 1
            drained = b""
            async with asyncio.timeout(RECOVERY_SECONDS):
                while b'"seq":301,' not in drained:
                    with suppress(BlockingIOError):
                        drained += os.read(reader, 1 << 20)
                    await asyncio.sleep(0.01)
            await _recovers(trail)
            while b'"seq":302,' not in drained:
                drained += os.read(reader, 1 << 20)
        with suppress(BlockingIOError):
            drained += os.read(reader, 1 << 20)
    finally:
        os.close(reader)
    log = tmp_path / "log"
    log.write_bytes(drained)
    report = verified([log])
    assert (report.findings, report.events) == ([], 301)


async def test_a_stream_that_breaks_in_the_middle_of_a_line_goes_on_with_a_line_of_its_own(tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    stream.touch()
    async with opened_trail(tmp_path, target=StreamTarget(path=stream)) as trail:
        await trail.append(an_event(1))
        with _file_size_limit(stream.stat().st_size + 900), suppress(AuditUnavailable):  # a line and a half
            await append_all(trail, [an_event(2), an_event(3), an_event(4)])
        await _recovers(trail)
    report = verified([stream])
    assert report.findings == []
    assert [event["user_id"][-2:] for event in members([stream])] == ["01", "02", "03", "04", "63"]
    assert [event.get("late", False) for event in members([stream])] == [False, False, True, True, False]


async def test_a_fifo_without_a_reader_is_unavailable_until_one_comes(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with opened_trail(tmp_path, target=StreamTarget(path=fifo)) as trail:
        await _refuses_at_once(trail)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await _recovers(trail)
    os.close(reader)


async def test_what_waits_is_bounded(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, target=StreamTarget(path=fifo), bound_seconds=0.5, counters=counters) as trail:
        outcomes = await asyncio.gather(*(trail.append(an_event(n)) for n in range(10_500)), return_exceptions=True)
        assert {type(one) for one in outcomes} <= {AuditUnavailable, type(None)}
        assert counters.counts["failures.full"] == 500
    os.close(reader)


async def test_a_caller_that_goes_away_takes_nobody_with_it(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        tasks = [asyncio.create_task(trail.append(an_event(number))) for number in range(10)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(one is None for one in outcomes) == 9
    assert len(members(files(tmp_path))) == 10


async def test_a_flood_without_keys_leaves_ten_events_a_second_and_the_count_of_the_others(tmp_path: Path) -> None:
    nobody = Caller("", "a-request", address="192.0.2.9")
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, counters=counters) as trail:
        flood = [an_event(number, outcome=Unauthenticated.code, caller=nobody) for number in range(1_000)]
        await append_all(trail, flood)
        await trail.append(an_event(1))
        await append_all(trail, flood[:20])
    events = members(files(tmp_path))
    [end] = members(files(tmp_path), "end")
    written = [event for event in events if event["outcome"] == "unauthenticated"]
    assert 10 <= len(written) <= 40
    omitted = sum(event.get("omitted", 0) for event in events) + end["omitted"]
    assert len(written) + omitted == 1_020
    assert counters.counts["omitted"] == omitted
    assert {(event["service"], event["key"]) for event in written} == {(None, None)}


async def test_a_flood_of_refusals_leaves_a_share_of_each_service_and_the_count_of_the_others(tmp_path: Path) -> None:
    one, other = Caller("one", "a-request", "0" * 12), Caller("other", "a-request", "1" * 12)
    refused = ("rate_limited", "forbidden", "invalid_request", "malformed_body", "body_too_large")
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, counters=counters) as trail:
        await append_all(trail, [an_event(outcome=code, caller=one) for code in refused for _ in range(500)])
        await append_all(trail, [an_event(outcome=code, caller=other) for code in refused])
        await append_all(trail, [an_event(outcome="token_not_found", caller=one) for _ in range(500)])
    events = members(files(tmp_path))
    kept = Counter((event["service"], event["outcome"]) for event in events)
    assert 10 <= kept["one", "rate_limited"] < 500  # seconds may end on the way
    assert 100 <= sum(kept["one", code] for code in refused[1:]) < 2_000
    assert [kept["other", code] for code in refused] == [1] * 5
    assert kept["one", "token_not_found"] == 500
    omitted = sum(event.get("omitted", 0) for event in events)
    assert len(events) + omitted == 5 * 500 + 5 + 500
    assert counters.counts["omitted"] == omitted


def test_in_each_second_a_service_has_ten_that_are_too_many_and_a_hundred_other_refusals() -> None:
    clock = [0.0]
    gate = RefusalLimiter(monotonic=lambda: clock[0])
    one, other, nobody = Caller("one", "a"), Caller("other", "a"), Caller("", "a")

    def admitted(outcome: str, caller: Caller) -> int:
        return sum(gate.admits(an_event(outcome=outcome, caller=caller)) for _ in range(150))

    for clock[0] in (0.0, 1.0, 2.5):
        assert [admitted("rate_limited", caller) for caller in (one, other)] == [10, 10]
        assert [admitted(code, one) for code in ("forbidden", "invalid_request", "body_too_large")] == [100, 0, 0]
        assert admitted("malformed_body", other) == 100
        assert admitted("unauthenticated", nobody) == 10
        assert admitted("store_timeout", one) == admitted("success", one) == 150
        assert gate.take_omitted() == 2 * 140 + 50 + 150 + 150 + 50 + 140
        assert gate.take_omitted() == 0


async def test_nothing_is_kept_after_the_end(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        pass
    with pytest.raises(AuditUnavailable):
        trail.require_open()
    with pytest.raises(AuditUnavailable):
        await trail.append(an_event())
    assert verified(files(tmp_path)).is_whole
