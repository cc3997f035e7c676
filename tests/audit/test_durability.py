"""When bytes reach the disk, and what happens if the disk refuses them.

A test cannot cut the power, so these observe the system calls that bring bytes to disk.
"""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from app.audit.targets import DiskCalls
from app.audit.writer import Sync
from app.errors import AuditUnavailable
from app.observability.in_memory_counters import InMemoryAuditCounters
from tests.support.audit.trails import (
    an_event,
    append_all,
    files,
    full_disk,
    members,
    notes,
    opened_trail,
    recovered,
    verified,
)
from tests.support.waiting import eventually_async


class Disk:
    """The real system calls, recorded; those in `broken` fail with EIO."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.flushed: list[tuple[int, int]] = []  # inode and size
        self.directories: list[int] = []
        self.calls = DiskCalls(fdatasync=self._fdatasync, fsync=self._fsync, ftruncate=self._ftruncate)

    def has(self, file: Path) -> bool:
        """Whether all bytes of the file are on disk."""
        status = file.stat()
        return (status.st_ino, status.st_size) in self.flushed

    def _fdatasync(self, descriptor: int) -> None:
        self._require("fdatasync")
        os.fdatasync(descriptor)
        status = os.fstat(descriptor)
        self.flushed.append((status.st_ino, status.st_size))

    def _fsync(self, descriptor: int) -> None:
        self._require("fsync")
        os.fsync(descriptor)
        self.directories.append(os.fstat(descriptor).st_ino)

    def _ftruncate(self, descriptor: int, size: int) -> None:
        self._require("ftruncate")
        os.ftruncate(descriptor, size)

    def _require(self, call: str) -> None:
        if call in self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize("sync", ["always", "interval", "off"])
async def test_an_event_is_in_the_kernel_before_the_answer(tmp_path: Path, sync: Sync) -> None:
    async with opened_trail(tmp_path, sync=sync) as trail:
        for number in range(5):
            await trail.append(an_event(number))
            assert len(members(files(tmp_path))) == number + 1


async def test_always_writes_an_event_to_disk_before_the_answer(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls) as trail:
        [file] = files(tmp_path)
        for number in range(5):
            await trail.append(an_event(number))
            assert disk.has(file), number


async def test_interval_flushes_an_event_soon_after_the_answer(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="interval", system=disk.calls) as trail:
        [file] = files(tmp_path)
        await trail.append(an_event(1))
        await eventually_async(lambda: disk.has(file))


async def test_interval_flushes_the_start_and_the_end_at_once(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="interval", system=disk.calls, flush_seconds=3600) as trail:
        [file] = files(tmp_path)
        assert disk.has(file)
        await trail.append(an_event(1))
        assert not disk.has(file)
    assert disk.has(file)


async def test_off_never_flushes(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="off", maximum_bytes=4096, system=disk.calls) as trail:
        await append_all(trail, [an_event(number) for number in range(10)], together=1)
    assert len(files(tmp_path)) == 2
    assert (disk.flushed, disk.directories) == ([], [])


@pytest.mark.parametrize("sync", ["always", "interval"])
async def test_a_full_file_and_the_next_name_are_on_disk_first(tmp_path: Path, sync: Sync) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync=sync, maximum_bytes=4096, system=disk.calls) as trail:
        await append_all(trail, [an_event(number) for number in range(10)], together=1)
        first, _ = files(tmp_path)
        assert disk.has(first)
        assert disk.directories == [os.stat(tmp_path).st_ino] * 2  # noqa: PTH116  ruff means no blocking here


async def test_an_event_that_always_cannot_flush_is_refused_and_retried(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls) as trail:
        await trail.append(an_event(1))
        [file] = files(tmp_path)
        before = file.read_bytes()
        disk.broken = {"fdatasync"}
        with pytest.raises(AuditUnavailable):
            await trail.append(an_event(2))
        assert file.read_bytes() == before
        with pytest.raises(AuditUnavailable):
            trail.require_open()
        disk.broken = set()
        await recovered(trail)
        assert disk.has(file)
    assert [(event["user_id"][-1], event["outcome"]) for event in members([file])] == [
        ("1", "success"),
        ("2", "audit_unavailable"),
    ]
    assert verified([file]).is_intact


async def test_a_failed_flush_closes_the_trail_until_one_succeeds(tmp_path: Path) -> None:
    disk = Disk()
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, system=disk.calls, flush_seconds=0.05, counters=counters) as trail:
        disk.broken = {"fdatasync"}
        await trail.append(an_event(1))
        await eventually_async(lambda: counters.counts["failures.EIO"] > 0)
        with pytest.raises(AuditUnavailable):
            trail.require_open()
        disk.broken = set()
        await recovered(trail)
        await trail.append(an_event(2))
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["1", "2"]
    assert len(members(files(tmp_path), "resumed")) >= 1
    assert verified(files(tmp_path)).is_intact


async def test_a_directory_that_cannot_be_flushed_delays_the_start(tmp_path: Path) -> None:
    disk = Disk()
    disk.broken = {"fsync"}
    async with opened_trail(tmp_path, system=disk.calls) as trail:
        with pytest.raises(AuditUnavailable):
            trail.require_open()
        disk.broken = set()
        await recovered(trail)
        await trail.append(an_event(1))
    assert len(os.listdir(tmp_path)) == 1  # no draft is left  # noqa: PTH208  only the names count
    assert verified(files(tmp_path)).is_intact


async def test_a_chain_leaves_a_file_whose_half_line_cannot_be_cut(tmp_path: Path) -> None:
    disk = Disk()
    disk.broken = {"ftruncate"}
    async with opened_trail(tmp_path, system=disk.calls) as trail:
        await trail.append(an_event(1))
        [first] = files(tmp_path)
        before = first.read_bytes()
        with full_disk(first), pytest.raises(AuditUnavailable):
            await trail.append(an_event(2))
        await recovered(trail)
    torn = first.read_bytes()
    assert torn.startswith(before)
    assert len(torn) == len(before) + 300
    assert not torn.endswith(b"\n")
    report = verified(files(tmp_path))
    assert (report.findings, notes(report), len(files(tmp_path))) == ([], ["torn"], 2)
    assert [(event["user_id"][-1], event.get("late")) for event in members(files(tmp_path))] == [
        ("1", None),
        ("2", True),
    ]


async def test_complete_lines_that_cannot_be_cut_are_not_written_twice(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls) as trail:
        disk.broken = {"ftruncate", "fdatasync"}
        outcomes = await asyncio.gather(trail.append(an_event(1)), trail.append(an_event(2)), return_exceptions=True)
        assert {type(one) for one in outcomes} == {AuditUnavailable}
        disk.broken = set()
        await recovered(trail)
        await trail.append(an_event(3))
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["1", "2", "3"]
    assert len(files(tmp_path)) == 2
    assert verified(files(tmp_path)).is_intact
