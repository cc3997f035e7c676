"""The queue that log lines wait in, in front of a pipe, a socket and a disk that take nothing."""

from __future__ import annotations

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

from app.observability.log_output import MOST_WAITING, LogOutput

LINE = f"{'x' * 999}\n"
FULL = "/dev/full"  # every write to it is the kernel's ENOSPC


@contextmanager
def _pipe(*, blocking: bool) -> Iterator[tuple[int, LogOutput]]:
    reading, writing = os.pipe()
    os.set_blocking(writing, blocking)
    output = LogOutput(descriptor=writing)
    output.tell_dropped = "{} are missing\n".format
    yield reading, output
    output.end()
    os.close(reading)
    os.close(writing)


def _read(reading: int, *, until: bytes) -> list[str]:
    data = b""
    while not data.endswith(until):
        data += os.read(reading, 65_536)
    return data.decode().splitlines()


def _fill(output: LogOutput) -> int:
    """Write three times what may wait, from four threads; returns how many lines."""
    each = 3 * MOST_WAITING // len(LINE) // 4

    def write(name: int) -> None:
        for number in range(each):
            output.write(f"{name} {number:06} {LINE}")

    threads = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "whoever logs waits for nobody"
    return 4 * each


def _kept_and_missing(reading: int, written: int) -> tuple[list[str], int]:
    """Read until each line that was written is there or counted."""
    data, missing = b"", 0
    kept: list[str] = []
    while len(kept) + missing < written or not data.endswith(b"\n"):
        data += os.read(reading, 65_536)
        lines = data.decode().splitlines()
        kept = [line for line in lines if line.endswith("x")]
        missing = sum(int(line.split()[0]) for line in lines if line.endswith("are missing"))
    return kept, missing


@pytest.mark.parametrize("blocking", [True, False])
def test_lines_that_nobody_reads_wait_for_nobody_and_those_dropped_are_counted(*, blocking: bool) -> None:
    with _pipe(blocking=blocking) as (reading, output):
        written = _fill(output)
        kept, missing = _kept_and_missing(reading, written)
        assert len(kept) + missing == written
        assert MOST_WAITING * 0.9 < sum(map(len, kept)) < MOST_WAITING * 2.2
        for name in range(4):
            numbers = [int(line.split()[1]) for line in kept if line.startswith(f"{name} ")]
            assert numbers == sorted(numbers), "in order"
        output.write("next\n")
        assert _read(reading, until=b"next\n") == ["next"], "what was told is not told again"


def test_a_line_longer_than_the_pipe_comes_whole_and_unencodable_text_comes_escaped() -> None:
    with _pipe(blocking=False) as (reading, output):
        output.write(f"{'long' * 100_000}\n")
        output.write("\ud800 end\n")
        assert _read(reading, until=b" end\n") == ["long" * 100_000, "\\ud800 end"]


def test_the_end_waits_for_two_seconds_and_no_longer() -> None:
    with _pipe(blocking=True) as (reading, output):
        output.write("x" * 100_000 + "\n")
        began = time.monotonic()
        output.end(within_seconds=0.2)
        output.write("later\n")
        output.end()
        assert 0.15 < time.monotonic() - began < 2.5
        assert _read(reading, until=b"later\n")[-1] == "later"


def test_a_disk_that_was_full_is_told_when_it_is_not(tmp_path: Path) -> None:
    file = tmp_path / "log"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    full = os.open(FULL, os.O_WRONLY)
    kept = os.dup(descriptor)
    output = LogOutput(descriptor=descriptor)
    output.tell_dropped = "{} are missing\n".format
    os.dup2(full, descriptor)
    for number in range(3):
        output.write(f"{number}\n")
    output.end()
    os.dup2(kept, descriptor)
    output.write("3\n")
    output.end()
    assert file.read_text() == "3 are missing\n3\n"
    for each in (descriptor, full, kept):
        os.close(each)


def test_what_is_written_as_several_lines_is_not_counted_as_missing(tmp_path: Path) -> None:
    """An exception in the format for people is one line more."""
    file = tmp_path / "log"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)
    output = LogOutput(descriptor=descriptor)
    for number in range(2):
        output.write(f"{number}\nRuntimeError\n")
        output.end()
    assert file.read_text() == "0\nRuntimeError\n1\nRuntimeError\n"
    os.close(descriptor)


def test_of_a_write_that_is_cut_the_lines_that_arrived_are_not_counted_as_missing(tmp_path: Path) -> None:
    """The limit of the process's files cuts it in the middle of a line, as a full disk does."""
    program = """
import os, resource
from app.observability.log_output import LogOutput
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
output = LogOutput(descriptor=1)
output.tell_dropped = "{} are missing\\n".format
resource.setrlimit(resource.RLIMIT_FSIZE, (30_100, unlimited[1]))
for number in range(150):
    output.write(f"{number:399}\\n")
output.end()
resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
output.write("next\\n")
output.end()
"""
    with (tmp_path / "log").open("wb") as log:
        subprocess.run([sys.executable, "-c", program], stdout=log, check=True, cwd=tmp_path, timeout=30)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [int(line) for line in lines[:75]] == list(range(75))
    assert (lines[75].strip(), lines[76:]) == ("", ["75 are missing", "next"])


def test_a_short_program_loses_no_line_however_it_ends_and_a_forked_child_says_its_own(tmp_path: Path) -> None:
    program = """
import os, structlog
from app.observability.logging import configure_logging
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
log.info("stopped")
raise ValueError("CANARY")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path, timeout=30
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["seconds"] for line in lines if "seconds" in line] == list(range(3_000))
    assert sorted(line["event"] for line in lines if "seconds" not in line) == ["failed", "started", "stopped"]
    assert (lines[-1]["exception"], done.returncode, done.stderr) == ("ValueError", 1, "")
    assert "CANARY" not in done.stdout
