"""The files of a chain, their names and their permissions."""

from __future__ import annotations

import os
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.audit.chain_checkpoint import unnamed_chains
from app.audit.chained_lines import MAXIMUM_LINE_BYTES, Chain
from app.audit.log_files import LogFiles
from app.audit.targets import FileTarget, WriteError
from tests.support.audit.trails import KEY, chain_of, files, interrupt, keep, log_files, members, mode, verified
from tests.support.sizes import SOAK, size

PROCESSES = size(2, 4)
EVENTS = size(2_000, 25_000)  # of each process
HOLE_BYTES = size(4, 16) * MAXIMUM_LINE_BYTES
MAXIMUM_BYTES = EVENTS * 80  # an event has about 600 bytes: at least seven files for each process

WRITE = """
import asyncio, sys
from pathlib import Path
from tests.support.audit.trails import an_event, append_all, opened_trail

async def main(folder, first, count, maximum_bytes):
    async with opened_trail(folder, maximum_bytes=maximum_bytes) as trail:
        await append_all(trail, [an_event(first + number) for number in range(count)], together=100)

asyncio.run(main(Path(sys.argv[1]), *map(int, sys.argv[2:])))
"""


def test_files_and_their_directory_belong_to_their_owner_alone(tmp_path: Path) -> None:
    assert {mode(file) for file in keep(tmp_path / "audit", 1)} == {0o600}
    assert mode(tmp_path / "audit") == 0o700
    LogFiles(tmp_path / "other" / "audit.jsonl").require_writable()
    assert mode(tmp_path / "other") == 0o700


def test_a_taken_name_leaves_no_draft_and_no_link_is_followed(tmp_path: Path) -> None:
    chain = Chain(key=KEY).id
    audit_files = LogFiles(tmp_path / "audit.jsonl")
    target = FileTarget(log_files=audit_files, chain=chain, maximum_bytes=4096, flushing=True)
    taken = audit_files.file(chain, 1)
    taken.mkdir()
    with pytest.raises(WriteError, match="EISDIR"):
        target.append([b"a line"], durably=False)
    assert list(tmp_path.iterdir()) == [taken]
    taken.rmdir()
    elsewhere = tmp_path / "elsewhere"
    taken.symlink_to(elsewhere)
    target.append([b"a line"], durably=False)
    target.close()
    assert (taken.is_symlink(), taken.read_bytes(), elsewhere.exists()) == (False, b"a line\n", False)


def test_a_fifo_named_like_a_chain_does_not_hang_the_start(tmp_path: Path) -> None:
    keep(tmp_path, 1)
    fifo = log_files(tmp_path).file(Chain(key=KEY).id, 1)
    os.mkfifo(fifo)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(keep, tmp_path, 1)
        try:
            assert len(started.result(timeout=60)) == 1
        finally:
            os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK))  # frees a thread that hangs
    report = verified(files(tmp_path))
    assert (report.findings, report.chains) == ([], 2)
    with pytest.raises(OSError, match="not a regular file"):
        verified([fifo])


@pytest.mark.parametrize("ends", [(b"", b"\n"), (b"\n", b"")] if SOAK else [(b"", b"\n")], ids=str)
def test_a_sparse_file_costs_a_start_bounded_memory_and_is_found(tmp_path: Path, ends: tuple[bytes, bytes]) -> None:
    """A hole takes no space on the disk, and was read into memory."""
    [killed] = keep(tmp_path, 1)
    interrupt(killed)
    planted = log_files(tmp_path).file(Chain(key=KEY).id, 1)
    for path, end in zip((killed, planted), ends, strict=True):
        with path.open("ab") as file:
            file.truncate(max(1, path.stat().st_size) + HOLE_BYTES)
            file.write(end)
    tracemalloc.start()
    try:
        checkpoints = unnamed_chains(log_files(tmp_path), keys=[KEY])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAXIMUM_LINE_BYTES
    assert {one.chain: one.followed for one in checkpoints} == {chain_of(killed): True, chain_of(planted): True}
    keep(tmp_path, 1)
    found = {(one.location.chain, one.problem) for one in verified(files(tmp_path)).findings}
    assert {(chain_of(path), "was_followed") for path in (killed, planted)} <= found


def test_chains_of_several_processes_verify_across_their_files(tmp_path: Path) -> None:
    """`make soak` writes 100 000 events in four processes."""
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITE, tmp_path, str(number * EVENTS), str(EVENTS), str(MAXIMUM_BYTES)])
        for number in range(PROCESSES)
    ]
    assert [process.wait(120) for process in processes] == [0] * PROCESSES
    written = files(tmp_path)
    report = verified(written)
    assert (report.findings, report.chains, report.events) == ([], PROCESSES, PROCESSES * EVENTS)
    assert len(written) >= PROCESSES * 5
    assert max(path.stat().st_size for path in written) <= MAXIMUM_BYTES
    assert {mode(path) for path in written} == {0o600}
    assert len({event["user_id"] for event in members(written)}) == PROCESSES * EVENTS
    middle = written[len(written) // 2]
    lines = middle.read_bytes().splitlines(keepends=True)
    removed = len(lines) // 2
    middle.write_bytes(b"".join(lines[:removed] + lines[removed + 1 :]))
    [finding] = verified(written).findings
    assert (finding.problem, finding.location.file, finding.location.line) == ("missing", middle, removed + 1)
