"""Processor time of servers, from /proc."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Final

_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PARENT: Final = 1  # of the fields after the command in /proc/PID/stat
_TIMES: Final = slice(11, 15)  # user and system, of the process and of its children that have ended


def processor_seconds(pids: Iterable[int]) -> float:
    """Return the processor time of these processes and all their descendants."""
    stats = {pid: fields for pid in _processes() if (fields := _stat(pid))}
    children: dict[int, list[int]] = {}
    for pid, fields in stats.items():
        children.setdefault(int(fields[_PARENT]), []).append(pid)
    ticks, found = 0, set(pids)
    while found:
        pid = found.pop()
        ticks += sum(map(int, stats[pid][_TIMES])) if pid in stats else 0
        found.update(children.get(pid, ()))
    return ticks / _TICKS_PER_SECOND


def _processes() -> list[int]:
    return [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdigit()]


def _stat(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # ended since it was listed
        return []
