"""Processor time of servers, and their waits for a processor, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PARENT: Final = 1  # of the fields after the command in /proc/PID/stat
_TIMES: Final = slice(11, 15)  # user and system, of the process and of its children that have ended


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of these processes and all their descendants."""
    return sum(sum(map(int, fields[_TIMES])) for _, fields in _family(pids)) / _TICKS_PER_SECOND


def waiting_seconds(pids: Iterable[int]) -> float:
    """Return how long threads of these processes and their descendants were ready to run and had no processor.

    Threads that have ended are left out, so of a server that ends threads a later value may be less.
    """
    return sum(map(_nanoseconds_waited, (pid for pid, _ in _family(pids)))) / 1e9


def _family(pids: Iterable[int]) -> Iterator[tuple[int, list[str]]]:
    """Yield these processes and all their descendants, with their fields of /proc/PID/stat."""
    stats = {pid: fields for pid in _processes() if (fields := _stat(pid))}
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    found = set(pids)
    while found:
        pid = found.pop()
        if pid in stats:
            yield pid, stats[pid]
        found.update(children.get(pid, ()))


def _nanoseconds_waited(pid: int) -> int:
    """Return the second field of schedstat, summed over the threads; 0 from a kernel that does not count it."""
    try:
        return sum(int(file.read_text().split()[1]) for file in Path(f"/proc/{pid}/task").glob("*/schedstat"))
    except OSError:  # ended since it was listed
        return 0


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended since it was listed
        return []
