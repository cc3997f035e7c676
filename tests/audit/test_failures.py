"""A trail that cannot be written refuses in bounded time, and recovers without a restart.

Full disks are RLIMIT_FSIZE, which cuts a write short in the same way, and `/dev/full`; a small file system would need
root. A read-only directory belongs to another user: tests that run as root give up their rights for that time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from app.audit.targets import FILE_CHECK_SECONDS, StreamTarget
from app.audit.trail import MAXIMUM_PENDING, SignedAuditTrail
from app.audit.writer import Sync
from app.errors import AuditUnavailable
from app.observability.in_memory_counters import InMemoryAuditCounters
from app.tokens.events import TokenEvents
from tests.support.audit.trails import (
    RECOVERY_SECONDS,
    WITHOUT_KEY,
    HeldDisk,
    an_event,
    append_all,
    file_size_limit,
    files,
    full_disk,
    members,
    notes,
    opened_trail,
    problems,
    recovered,
    unread_fifo,
    verified,
)

NOBODY = 65534


async def _refuses_at_once(trail: SignedAuditTrail) -> None:
    with pytest.raises(AuditUnavailable):
        trail.require_open()
    with pytest.raises(AuditUnavailable):
        await trail.check()


@pytest.mark.parametrize("sync", ["always", "interval", "off"])
async def test_a_full_disk_refuses_and_leaves_no_half_line(tmp_path: Path, sync: Sync) -> None:
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, sync=sync, counters=counters) as trail:
        await trail.append(an_event(1))
        [file] = files(tmp_path)
        before = file.read_bytes()
        with full_disk(file):
            with pytest.raises(AuditUnavailable):
                await trail.append(an_event(2))
            await _refuses_at_once(trail)
            assert file.read_bytes() == before
        await recovered(trail)
        await trail.append(an_event(3))
    report = verified(files(tmp_path))
    assert (report.findings, report.notes, len(files(tmp_path))) == ([], [], 1)
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["1", "2", "3"]
    [resumed] = members(files(tmp_path), "resumed")
    assert resumed["refused"] >= 2
    assert counters.counts["failures.EFBIG"] >= 1
    assert counters.counts["events"] == 3


async def test_a_full_device_refuses(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, target=StreamTarget(path=Path("/dev/full"))) as trail:
        await _refuses_at_once(trail)
        with pytest.raises(AuditUnavailable):
            await trail.append(an_event())


@contextmanager
def _read_only_directory() -> Iterator[Path]:
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


async def test_a_read_only_directory_refuses_until_it_is_writable() -> None:
    with _read_only_directory() as folder:
        async with opened_trail(folder) as trail:
            await _refuses_at_once(trail)
            with pytest.raises(AuditUnavailable):
                await trail.append(an_event())
            if os.getuid() == 0:
                os.seteuid(0)
            folder.chmod(0o755)
            await recovered(trail)
        assert verified(files(folder)).findings == []


async def test_a_deleted_file_is_replaced_and_its_lines_are_missing(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        await append_all(trail, [an_event(1), an_event(2)])
        [file] = files(tmp_path)
        file.unlink()
        await asyncio.sleep(FILE_CHECK_SECONDS)
        await append_all(trail, [an_event(3), an_event(4)])
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["3", "4"]
    [finding] = verified(files(tmp_path)).findings
    assert (finding.problem, finding.detail) == ("missing", "before it seq 1 to 3 are missing")


async def test_a_deleted_directory_is_created_again(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    async with opened_trail(folder) as trail:
        await trail.append(an_event(1))
        shutil.rmtree(folder)
        await asyncio.sleep(FILE_CHECK_SECONDS)
        await trail.append(an_event(2))
    assert problems(verified(files(folder))) == ["missing"]


async def test_a_file_changed_by_another_process_is_not_continued(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        await trail.append(an_event(1))
        [file] = files(tmp_path)
        with file.open("ab") as other:
            other.write(b"half a")
        await asyncio.sleep(FILE_CHECK_SECONDS)
        await trail.append(an_event(2))
    assert file.read_bytes().endswith(b"half a")
    report = verified(files(tmp_path))
    assert (problems(report), len(files(tmp_path))) == ([], 2)
    assert notes(report) == ["torn"]


async def test_a_disk_that_hangs_refuses_its_waiters_and_recovers(tmp_path: Path) -> None:
    counters = InMemoryAuditCounters()
    with unread_fifo(tmp_path) as (fifo, reader):
        async with opened_trail(
            tmp_path, target=StreamTarget(path=fifo), bound_seconds=0.5, counters=counters
        ) as trail:
            began = time.monotonic()
            outcomes = await asyncio.gather(*(trail.append(an_event(n)) for n in range(300)), return_exceptions=True)
            assert time.monotonic() - began < RECOVERY_SECONDS
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
            await recovered(trail)
        with suppress(BlockingIOError):
            while data := os.read(reader, 1 << 20):
                drained += data
    log = tmp_path / "log"
    log.write_bytes(drained)
    report = verified([log])
    assert (report.findings, report.events) == ([], 300)


async def test_refusals_of_a_slow_disk_are_counted_in_a_line(tmp_path: Path) -> None:
    disk = HeldDisk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls, bound_seconds=0.2) as trail:
        disk.hold()
        with pytest.raises(AuditUnavailable):
            await trail.append(an_event(1))
        for _ in range(3):
            with pytest.raises(AuditUnavailable):
                trail.require_open()
        disk.release()
        await recovered(trail)
        await trail.append(an_event(2))
    assert [line["refused"] for line in members(files(tmp_path), "resumed")] == [4]
    assert (verified(files(tmp_path)).findings, len(members(files(tmp_path)))) == ([], 2)


async def test_a_call_refused_for_another_reason_counts_as_omitted(tmp_path: Path) -> None:
    """A 401 is a 401 with or without a trail; counted as refused, it made a slow disk look like an outage."""
    disk = HeldDisk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls, bound_seconds=0.2) as trail:
        disk.hold()
        with pytest.raises(AuditUnavailable):
            await trail.append(an_event(1))
        events = TokenEvents(audit=trail)
        for _ in range(50):
            await events.record_refusal(an_event(2, outcome="unauthenticated", caller=WITHOUT_KEY))
        disk.release()
        await recovered(trail)
        await trail.append(an_event(3))
    assert [line["refused"] for line in members(files(tmp_path), "resumed")] == [1]
    assert [event.get("omitted", 0) for event in members(files(tmp_path))] == [0, 50]


async def test_a_process_that_stood_still_blames_no_disk(tmp_path: Path) -> None:
    disk, counters = HeldDisk(), InMemoryAuditCounters()
    async with opened_trail(tmp_path, sync="always", system=disk.calls, bound_seconds=0.5, counters=counters) as trail:
        disk.hold()
        append = asyncio.create_task(trail.append(an_event(1)))
        await disk.is_waited_for()
        time.sleep(1.5)  # noqa: ASYNC251  neither the loop nor the disk moves, as in a process that is stopped
        asyncio.get_running_loop().call_later(0.1, disk.release)
        await append
        trail.require_open()
    assert counters.counts["failures.slow"] == 0
    assert members(files(tmp_path), "resumed") == []


async def test_a_stream_broken_inside_a_line_continues_on_a_new_line(tmp_path: Path) -> None:
    stream = tmp_path / "stream"
    stream.touch()
    async with opened_trail(tmp_path, target=StreamTarget(path=stream)) as trail:
        await trail.append(an_event(1))
        one_line_and_a_half = stream.stat().st_size + 900
        with file_size_limit(one_line_and_a_half), suppress(AuditUnavailable):
            await append_all(trail, [an_event(2), an_event(3), an_event(4)])
        await recovered(trail)
        await trail.append(an_event(5))
    assert verified([stream]).findings == []
    assert [event["user_id"][-1] for event in members([stream])] == ["1", "2", "3", "4", "5"]
    assert [event.get("late", False) for event in members([stream])] == [False, False, True, True, False]


async def test_a_fifo_without_a_reader_refuses_until_one_opens_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    async with opened_trail(tmp_path, target=StreamTarget(path=fifo)) as trail:
        await _refuses_at_once(trail)
        reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        await recovered(trail)
    os.close(reader)


async def test_the_number_of_waiting_events_is_bounded(tmp_path: Path) -> None:
    counters = InMemoryAuditCounters()
    more = MAXIMUM_PENDING + 500
    event = an_event()
    with unread_fifo(tmp_path) as (fifo, _):
        async with opened_trail(
            tmp_path, target=StreamTarget(path=fifo), bound_seconds=0.2, counters=counters
        ) as trail:
            outcomes = await asyncio.gather(*(trail.append(event) for _ in range(more)), return_exceptions=True)
            assert {type(one) for one in outcomes} <= {AuditUnavailable, type(None)}
            assert counters.counts["failures.full"] == 500


async def test_a_cancelled_caller_disturbs_no_other(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        tasks = [asyncio.create_task(trail.append(an_event(number))) for number in range(10)]
        await asyncio.sleep(0)
        tasks[4].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(one is None for one in outcomes) == 9
    assert len(members(files(tmp_path))) == 10


async def test_a_closed_trail_refuses(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        pass
    with pytest.raises(AuditUnavailable):
        trail.require_open()
    with pytest.raises(AuditUnavailable):
        await trail.append(an_event())
    assert verified(files(tmp_path)).is_intact
