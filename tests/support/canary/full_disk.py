"""A full disk under the audit trail: no process may write a file longer than its audit file is now."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

from tests.support.api.service import Service
from tests.support.canary.traffic import BOUND_SECONDS, Traffic
from tests.support.process.home import Home
from tests.support.process.server import Server
from tests.support.process.workers import one_wire_to_each_worker, workers_of
from tests.support.waiting import eventually

_SPARE_BYTES: Final = 100_000  # for the log, which is under the same limit and must still be written
_ENTRIES: Final = 100


def full_audit_disk(traffic: Traffic, audit: Path) -> None:
    """Send every request to a full disk. Call this early: log and database must be shorter than the audit files."""
    user_id = str(uuid4())
    canvas = f"/v1/users/{user_id}/tokens/canvas"
    traffic.send_until(201, "PUT", canvas, json=traffic.body())
    token_ids = [{"user_id": user_id, "provider": "canvas", "service_type": f"s{number}"} for number in range(_ENTRIES)]
    for token_id in token_ids:  # because each failed item takes a line of the log, which must stay shorter
        traffic.send_until(201, "PUT", canvas, params={"service_type": token_id["service_type"]}, json=traffic.body())
    batch = {"tokens": token_ids}
    server = _server(traffic.service)
    with one_wire_to_each_worker(server) as wires:
        while min(_sizes(server, audit).values()) < traffic.service.log.stat().st_size + _SPARE_BYTES:
            for wire in wires:
                wire.call("POST", "/v1/tokens/batch-get", batch)
        with _file_size_limits(_sizes(server, audit)):
            for wire in wires * 2:
                answer = wire.call("GET", canvas)
                assert (answer.status, answer.body["code"]) == (503, "audit_unavailable")
            traffic.every_route(str(uuid4()))
        for wire in wires:
            eventually(lambda wire=wire: wire.call("GET", canvas).status == 200, within_seconds=BOUND_SECONDS)  # type: ignore[misc]  # mypy cannot infer the default's type


def _server(service: Service) -> Server:
    settings = {"PORT": str(urlsplit(service.url).port)}
    return Server(Home(service.log.parent, service.keys["full"], settings), service.process, service.log)


@contextmanager
def _file_size_limits(sizes: dict[int, int]) -> Iterator[None]:
    """Limit the files of each process to a size during the block."""
    limits = {process: resource.prlimit(process, resource.RLIMIT_FSIZE) for process in sizes}
    for process, size in sizes.items():
        resource.prlimit(process, resource.RLIMIT_FSIZE, (size + 100, limits[process][1]))
    try:
        yield
    finally:
        for process, limit in limits.items():
            resource.prlimit(process, resource.RLIMIT_FSIZE, limit)


def _sizes(server: Server, audit: Path) -> dict[int, int]:
    """Return the length of each worker's audit file."""
    return {worker: _size(worker, audit) for worker in workers_of(server)}


def _size(process: int, audit: Path) -> int:
    for descriptor in Path("/proc", str(process), "fd").iterdir():
        try:
            if audit in descriptor.readlink().parents:
                return descriptor.stat().st_size
        except FileNotFoundError:  # closed since it was listed
            continue
    return 0
