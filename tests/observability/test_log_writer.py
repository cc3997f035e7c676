"""The log writer in front of a pipe, a file and a disk that take nothing."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.observability.log_writer import MOST_WAITING, LogWriter

BOUND_SECONDS = 60  # shows a hang
LINE = "x" * 400
FULL = "/dev/full"  # every write to it raises ENOSPC


@contextmanager
def _pipe(*, blocking: bool) -> Iterator[tuple[int, LogWriter]]:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    writer = LogWriter(descriptor=writing)
    writer.format_dropped = "{} are missing\n".format
    yield reading, writer
    writer.finish()
    os.close(reading)
    os.close(writing)


@contextmanager
def _file(path: Path) -> Iterator[LogWriter]:
    with path.open("wb", buffering=0) as file:
        writer = LogWriter(descriptor=file.fileno())
        writer.format_dropped = "{} are missing\n".format
        yield writer


def _read(reading: int, *, until: bytes) -> list[str]:
    data = b""
    while not data.endswith(until):
        data += os.read(reading, 65_536)
    return data.decode().splitlines()


def _write_too_much(writer: LogWriter) -> int:
    """Write three times as many lines as may wait, from four threads; return how many."""
    each = 3 * MOST_WAITING // 4

    def write(name: int) -> None:
        for number in range(each):
            writer.write(f"{name} {number:06} {LINE}\n")

    threads = [threading.Thread(target=write, args=(name,), daemon=True) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND_SECONDS)
        assert not thread.is_alive(), "logging does not wait for the reader"
    return 4 * each


def _kept_and_missing(reading: int, written: int) -> tuple[list[str], int]:
    """Read until each written line has arrived or is counted as missing."""
    kept: list[str] = []
    missing, begun = 0, ""
    while len(kept) + missing < written:
        *lines, begun = (begun + os.read(reading, 65_536).decode()).split("\n")
        kept += [line for line in lines if line.endswith("x")]
        missing += sum(int(line.split()[0]) for line in lines if line.endswith("are missing"))
    return kept, missing


@pytest.mark.parametrize("blocking", [True, False])
def test_unread_lines_block_no_thread_and_dropped_ones_are_counted(*, blocking: bool) -> None:
    with _pipe(blocking=blocking) as (reading, writer):
        written = _write_too_much(writer)
        kept, missing = _kept_and_missing(reading, written)
        assert len(kept) + missing == written
        assert MOST_WAITING <= len(kept) <= 2.1 * MOST_WAITING, "the queue, and what the thread holds"
        for name in range(4):
            numbers = [int(line.split()[1]) for line in kept if line.startswith(f"{name} ")]
            assert numbers == sorted(numbers), "in order"
        writer.write("next\n")
        assert _read(reading, until=b"next\n") == ["next"], "missing lines are reported once"


def test_a_long_line_arrives_whole_and_a_surrogate_escaped() -> None:
    with _pipe(blocking=False) as (reading, writer):
        writer.write(f"{'long' * 100_000}\n")
        writer.write("\ud800 end\n")
        assert _read(reading, until=b" end\n") == ["long" * 100_000, "\\ud800 end"]


def test_lines_of_processes_that_share_a_pipe_never_mix() -> None:
    program = """
import sys
from app.observability.log_writer import LogWriter
writer = LogWriter(descriptor=1)
for number in range(1_500):
    writer.write(sys.argv[1] * (300 + number) + "\\n")
"""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # a longer write is cut
    writers = [subprocess.Popen([sys.executable, "-c", program, letter], stdout=writing) for letter in "abc"]
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        lines = pipe.read().decode().splitlines()
    assert [process.wait(BOUND_SECONDS) for process in writers] == [0, 0, 0]
    for letter in "abc":
        assert [len(line) for line in lines if line == letter * len(line)] == list(range(300, 1_800))
    assert len(lines) == 4_500


def test_finish_waits_a_bounded_time_for_an_unread_pipe() -> None:
    with _pipe(blocking=True) as (reading, writer):
        writer.write("x" * 100_000 + "\n")
        began = time.monotonic()
        writer.finish(within_seconds=0.2)
        writer.write("later\n")
        writer.finish()
        assert 0.2 <= time.monotonic() - began < BOUND_SECONDS
        assert _read(reading, until=b"later\n")[-1] == "later"


def test_lines_that_a_full_disk_refused_are_reported_later(tmp_path: Path) -> None:
    with _file(tmp_path / "log") as writer:
        descriptor = writer.descriptor
        assert descriptor is not None
        kept, full = os.dup(descriptor), os.open(FULL, os.O_WRONLY)
        os.dup2(full, descriptor)
        for number in range(3):
            writer.write(f"{number}\n")
        writer.finish()
        os.dup2(kept, descriptor)
        writer.write("3\n")
        for each in (kept, full):
            os.close(each)
    assert (tmp_path / "log").read_text() == "3 are missing\n3\n"


def test_one_write_of_several_lines_counts_none_as_missing(tmp_path: Path) -> None:
    """An exception in the console format has several lines."""
    with _file(tmp_path / "log") as writer:
        for number in range(2):
            writer.write(f"{number}\nRuntimeError\n")
            writer.finish()
    assert (tmp_path / "log").read_text() == "0\nRuntimeError\n1\nRuntimeError\n"


def test_only_the_lines_cut_from_a_partial_write_are_missing(tmp_path: Path) -> None:
    """The limit on file size cuts a write within a line, as a full disk does."""
    program = """
import resource
from app.observability.log_writer import LogWriter
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
writer = LogWriter(descriptor=1)
writer.format_dropped = "{} are missing\\n".format
resource.setrlimit(resource.RLIMIT_FSIZE, (30_100, unlimited[1]))
for number in range(150):
    writer.write(f"{number:399}\\n")
writer.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
writer.write("next\\n")
"""
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True, cwd=tmp_path, timeout=BOUND_SECONDS)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [int(line) for line in lines[:75]] == list(range(75))
    assert (lines[75].strip(), lines[76:]) == ("", ["75 are missing", "next"])


@pytest.mark.parametrize("ends", ["raise ValueError('CANARY')", "os.kill(os.getpid(), signal.SIGTERM)"])
def test_a_process_loses_no_line_however_it_ends(tmp_path: Path, ends: str) -> None:
    """By an exception, or as a worker does: by a signal after `end_log`. A forked child has its own lines."""
    program = f"""
import os, signal, structlog
from app.observability.logging import configure_logging, end_log
configure_logging(level="INFO", log_format="json")
log = structlog.get_logger()
for number in range(3_000):
    log.info("request", seconds=number)
child = os.fork()
if child == 0:
    log.info("started")
    raise SystemExit(0)
assert os.waitpid(child, 0)[1] == 0
configure_logging(level="INFO", log_format="json")
end_log()
log.info("stopped")
{ends}
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=BOUND_SECONDS,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seconds"] for line in lines if "seconds" in line] == list(range(3_000))
    raised = ["failed"] if "raise" in ends else []
    assert sorted(line["event"] for line in lines if "seconds" not in line) == [*raised, "started", "stopped"]
    assert done.stderr == ""
    assert "CANARY" not in done.stdout
