"""The audit trail's disk is full: each process may write no file that is longer than its own audit file is now."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from uuid import uuid4

from tests.support.api.service import Service
from tests.support.canary.traffic import Traffic

_SPARE_BYTES: Final = 100_000  # for the log, which is under the same limit and is to be kept
_ENTRIES: Final = 100
_PATIENCE_SECONDS: Final = 20.0
_SOME: Final = {"Connection": "close"}  # whichever worker accepts the next one


def full_audit_disk(traffic: Traffic, audit: Path, workers: int) -> None:
    """Let every route meet the full disk. To be called early, for log and database must be shorter than the trail."""
    user_id = str(uuid4())
    canvas = f"/v1/users/{user_id}/tokens/canvas"
    assert traffic.send("PUT", canvas, json=traffic.body()).status_code == 201
    batch = {"tokens": [{"user_id": user_id, "provider": "canvas"}] * _ENTRIES}
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while min(_sizes(traffic.service, audit, workers).values()) < traffic.service.log.stat().st_size + _SPARE_BYTES:
        assert time.monotonic() < deadline, "a worker gets no requests"
        traffic.send("POST", "/v1/tokens/batch-get", json=batch, headers=_SOME)
    with _full(_sizes(traffic.service, audit, workers)):
        for _ in range(2 * workers):
            answer = traffic.send("GET", canvas, headers=_SOME)
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
        traffic.every_route(str(uuid4()))
    while traffic.send("GET", canvas, headers=_SOME).status_code != 200:
        assert time.monotonic() < deadline, "the trail did not recover"
        time.sleep(0.05)


@contextmanager
def _full(sizes: dict[int, int]) -> Iterator[None]:
    """Limit each process to its size inside of the block."""
    limits = {process: resource.prlimit(process, resource.RLIMIT_FSIZE) for process in sizes}
    for process, size in sizes.items():
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size + 100, limits[process][1]))
    try:
        yield
    finally:
        for process, limit in limits.items():
            resource.prlimit(process, resource.RLIMIT_FSIZE, limit)


def _sizes(service: Service, audit: Path, workers: int) -> dict[int, int]:
    """Return the length of its audit file for each process that keeps one; 0 for those that are still to open it."""
    main = Path("/proc") / str(service.process.pid)
    children = [child for task in (main / "task").iterdir() for child in (task / "children").read_text().split()]
    sizes = {process: size for process in map(int, [main.name, *children]) if (size := _size(process, audit))}
    return sizes if len(sizes) == workers else {**sizes, 0: 0}


def _size(process: int, audit: Path) -> int:
    for descriptor in Path("/proc", str(process), "fd").iterdir():
        try:
            if audit in descriptor.readlink().parents:
                return descriptor.stat().st_size
        except FileNotFoundError:  # closed since it was listed
            continue
    return 0
