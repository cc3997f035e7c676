"""Processors that the process may use, by what it is bound to and by made-up files of its cgroups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.cpu_count import spare_processors, usable_processors

HERE = usable_processors(root=Path("/nowhere"))


def _root(folder: Path, cgroup: str, **limits: str) -> Path:
    """Write a `cpu.max` for each cgroup; `top` is that of the mount, and `_` stands for a slash."""
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(cgroup)
    for name, limit in limits.items():
        home = folder / "sys/fs/cgroup" / ("" if name == "top" else name.replace("_", "/"))
        home.mkdir(parents=True, exist_ok=True)
        (home / "cpu.max").write_text(limit)
    return folder


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        ("0::/\n", {"top": "100000 100000\n"}),
        ("0::/\n", {"top": "199999 100000\n"}),  # almost two
        ("0::/\n", {"top": "5000 100000\n"}),  # less than one
        ("0::/pod/vault\n", {"top": "max 100000\n", "pod": "max 100000\n", "pod_vault": "50000 50000\n"}),
        ("0::/pod/vault\n", {"pod": "100000 100000\n", "pod_vault": "max 100000\n"}),
        ("0::/pod/vault\n", {"pod": "900000 100000\n", "pod_vault": "100000 100000\n"}),
        ("4:memory:/somewhere\n1:cpu:/other\n0::/pod\n", {"pod": "100000 100000\n", "other": "900000 100000\n"}),
        ("0::/../beside\n", {"top": "100000 100000\n"}),
    ],
)
def test_the_lowest_quota_of_all_cgroups_counts(tmp_path: Path, cgroup: str, limits: dict[str, str]) -> None:
    assert usable_processors(root=_root(tmp_path, cgroup, **limits)) == 1


@pytest.mark.parametrize(
    ("cgroup", "limits"),
    [
        ("0::/\n", {}),
        ("0::/\n", {"top": "max 100000\n"}),
        ("0::/\n", {"top": "max\n"}),
        ("0::/\n", {"top": ""}),
        ("0::/\n", {"top": "100000 0\n"}),
        ("0::/\n", {"top": "99900000 100000\n"}),
        ("0::/pod\n", {"other": "100000 100000\n"}),
        ("1:cpu:/pod\n", {"pod": "100000 100000\n"}),
        ("", {}),
    ],
)
def test_cgroups_without_a_quota_leave_the_affinity(tmp_path: Path, cgroup: str, limits: dict[str, str]) -> None:
    assert usable_processors(root=_root(tmp_path, cgroup, **limits)) == HERE


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or HERE < 2, reason="nothing to be bound to, or no other")
def test_the_affinity_counts() -> None:
    program = (
        "import os; from app.cpu_count import usable_processors as usable;"
        "os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1]); print(usable())"
    )
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout == "1\n"


def test_one_of_two_processors_is_left_to_the_event_loop(tmp_path: Path) -> None:
    assert spare_processors(root=tmp_path / "no files") == max(1, HERE - 1)
    assert spare_processors(root=_root(tmp_path, "0::/\n", top="100000 100000\n")) == 1
