"""How many processors this process may use: what it is bound to, and what its cgroups allow of their time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_ROOT: Final = Path("/")


def spare_processors(*, root: Path = _ROOT) -> int:
    """Return all that this process may use but one, which is the event loop's; at least 1."""
    return max(1, usable_processors(root=root) - 1)


def usable_processors(*, root: Path = _ROOT) -> int:
    """Return how many processors can be kept busy without a pause, at least 1.

    The machine's, unless the process is bound to fewer (`taskset`, a cpuset) or the `cpu.max` of its cgroup, or of one
    above that, allows fewer; cgroups of version 1 are not looked at. A part of a processor does not count: who uses
    more than the allowance is stopped for the rest of the period, with all threads. `root` holds `proc` and `sys`.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(bound, *_allowances(root))))


def _allowances(root: Path) -> Iterator[float]:
    """Yield the processors' worth of time that each cgroup of this process allows; unreadable ones allow any."""
    yield math.inf
    mount = root / "sys/fs/cgroup"
    for folder in (mount, *(mount.joinpath(*parts) for parts in _below_the_mount(root))):
        with suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield float(quota) / float(period)  # ValueError where the quota is `max`


def _below_the_mount(root: Path) -> Iterator[list[str]]:
    """Yield the cgroups that this process is in, from the outermost to its own, each as the folders that lead to it."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        hierarchy, _, path = line.partition("::")  # version 2 has no number but 0, and names no controller
        parts = [part for part in path.split("/") if part]
        if hierarchy == "0" and ".." not in parts:  # that is outside what is mounted here
            yield from (parts[: count + 1] for count in range(len(parts)))
