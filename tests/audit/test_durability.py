"""When bytes are brought to disk, and what comes of it where the disk refuses.

No test can take the power away, so these see the calls that bring bytes to disk, each with what the file held then.
"""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import time
from pathlib import Path

import pytest

from app.audit.file_target import FileCalls
from app.audit.trail import AuditLog
from app.audit.writer import Sync
from app.errors import AuditUnavailable
from tests.support.audit.trails import an_event, append_all, files, members, opened_trail, verified

RECOVERY_SECONDS = 5.0


class Disk:
    """The real calls, watched; those that are `broken` fail as a dying disk does."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.flushed: list[tuple[int, int]] = []  # the inode of each file, and its size
        self.directories: list[int] = []
        self.calls = FileCalls(fdatasync=self._fdatasync, fsync=self._fsync, ftruncate=self._ftruncate)

    def has(self, file: Path) -> bool:
        """Whether all that the file holds has been brought to disk."""
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


async def _brought(disk: Disk, file: Path, *, within_seconds: float) -> None:
    began = time.monotonic()
    while not disk.has(file):
        assert time.monotonic() - began < within_seconds
        await asyncio.sleep(0.01)


async def _recovers(trail: AuditLog) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                await trail.check()
            except AuditUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def test_always_is_on_disk_before_the_answer(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls) as trail:
        [file] = files(tmp_path)
        for number in range(5):
            await trail.append(an_event(number))
            assert disk.has(file), number


async def test_interval_is_on_disk_within_about_a_second_and_not_before_the_answer(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="interval", system=disk.calls) as trail:
        [file] = files(tmp_path)
        assert disk.has(file)  # its start
        await trail.append(an_event(1))
        assert not disk.has(file)
        await _brought(disk, file, within_seconds=2.5)
        await trail.append(an_event(2))
    assert disk.has(file)  # and what the end has found


async def test_off_leaves_it_to_the_kernel(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="off", maximum_bytes=4096, system=disk.calls) as trail:
        await append_all(trail, [an_event(number) for number in range(10)], together=1)
    assert len(files(tmp_path)) == 2
    assert (disk.flushed, disk.directories) == ([], [])


@pytest.mark.parametrize("sync", ["always", "interval"])
async def test_each_file_s_name_is_on_disk_and_each_file_before_the_next_one(tmp_path: Path, sync: Sync) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync=sync, maximum_bytes=4096, system=disk.calls) as trail:
        await append_all(trail, [an_event(number) for number in range(10)], together=1)
        first, _ = files(tmp_path)
        assert disk.has(first)
        assert disk.directories == [os.stat(tmp_path).st_ino] * 2  # noqa: PTH116  ruff means no blocking here


async def test_what_always_could_not_bring_to_disk_is_refused_and_late(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls, retry_seconds=0.05) as trail:
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
        await _recovers(trail)
        assert disk.has(file)
    assert [(event["user_id"][-1], event["outcome"]) for event in members([file])] == [
        ("1", "success"),
        ("2", "audit_unavailable"),
    ]
    assert verified([file]).is_whole


async def test_an_interval_s_flush_that_fails_closes_the_trail_until_one_succeeds(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, system=disk.calls, flush_seconds=0.05, retry_seconds=0.05) as trail:
        disk.broken = {"fdatasync"}
        await trail.append(an_event(1))
        async with asyncio.timeout(RECOVERY_SECONDS):
            while True:
                try:
                    trail.require_open()
                except AuditUnavailable:
                    break
                await asyncio.sleep(0.01)
        disk.broken = set()
        await _recovers(trail)
        await trail.append(an_event(2))
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["1", "2"]
    assert len(members(files(tmp_path), "resumed")) >= 1
    assert verified(files(tmp_path)).is_whole


async def test_a_directory_that_cannot_be_brought_to_disk_begins_nothing(tmp_path: Path) -> None:
    disk = Disk()
    disk.broken = {"fsync"}
    async with opened_trail(tmp_path, system=disk.calls, retry_seconds=0.05) as trail:
        with pytest.raises(AuditUnavailable):
            trail.require_open()
        disk.broken = set()
        await _recovers(trail)
        await trail.append(an_event(1))
    assert len(os.listdir(tmp_path)) == 1  # and no draft  # noqa: PTH208  names are all that counts
    assert verified(files(tmp_path)).is_whole


async def test_half_a_line_that_cannot_be_cut_back_stays_and_the_chain_goes_on_in_the_next_file(tmp_path: Path) -> None:
    disk = Disk()
    disk.broken = {"ftruncate"}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened_trail(tmp_path, system=disk.calls, retry_seconds=0.05) as trail:
        await trail.append(an_event(1))
        [first] = files(tmp_path)
        before = first.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 300, hard))
        try:
            with pytest.raises(AuditUnavailable):
                await trail.append(an_event(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await _recovers(trail)
    torn = first.read_bytes()
    assert torn.startswith(before)
    assert len(torn) == len(before) + 300
    assert not torn.endswith(b"\n")
    report = verified(files(tmp_path))
    assert (report.findings, [note.problem for note in report.notes], len(files(tmp_path))) == ([], ["torn"], 2)
    assert [(event["user_id"][-1], event.get("late")) for event in members(files(tmp_path))] == [
        ("1", None),
        ("2", True),
    ]


async def test_whole_lines_that_cannot_be_cut_back_stand_once(tmp_path: Path) -> None:
    disk = Disk()
    async with opened_trail(tmp_path, sync="always", system=disk.calls, retry_seconds=0.05) as trail:
        disk.broken = {"ftruncate", "fdatasync"}
        outcomes = await asyncio.gather(trail.append(an_event(1)), trail.append(an_event(2)), return_exceptions=True)
        assert {type(one) for one in outcomes} == {AuditUnavailable}
        disk.broken = set()
        await _recovers(trail)
        await trail.append(an_event(3))
    assert [event["user_id"][-1] for event in members(files(tmp_path))] == ["1", "2", "3"]
    assert len(files(tmp_path)) == 2
    assert verified(files(tmp_path)).is_whole
