"""Number of processors that this process may use, by affinity and cgroup quota."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")


def spare_processors(*, root: Path = _ROOT) -> int:
    """Return the usable processors except one for the event loop; at least 1."""
    return max(1, usable_processors(root=root) - 1)


def usable_processors(*, root: Path = _ROOT) -> int:
    """Return how many processors can be kept busy without being throttled, at least 1.

    The machine's number, or fewer by the process's affinity (`taskset`, a cpuset) or by `cpu.max` of its cgroup and the
    cgroups above; version 1 of cgroups is ignored. Rounded down, because a process that exceeds its quota is stopped
    with all its threads until the period ends. `root` is the directory with `proc` and `sys`.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(bound, *_allowances(root))))


def _allowances(root: Path) -> Iterator[float]:
    """Yield the quota of each cgroup of this process, in processors; infinite if it cannot be read."""
    yield math.inf
    mount = root / "sys/fs/cgroup"
    for folder in (mount, *(mount.joinpath(*parts) for parts in _cgroups(root))):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # ValueError if the quota is `max`


def _cgroups(root: Path) -> Iterator[list[str]]:
    """Yield the path of each cgroup of this process, outermost first, as a list of folders."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, _, path = line.partition("::")  # version 2 is hierarchy 0 without a controller
        parts = [part for part in path.split("/") if part]
        if hierarchy == "0" and ".." not in parts:  # ".." is outside of the mount
            yield from (parts[: count + 1] for count in range(len(parts)))
