"""Processor time, memory and open files of the serving processes."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from app.observability.metrics.registry import VaultMetrics
from tests.support.observability.exposed import Exposed, scraped
from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.workers import workers_of
from tests.support.waiting import eventually


def _scraped(server: Server) -> Exposed:
    with server.client() as client:
        return scraped(client)


def _resident_bytes(process: int) -> int:
    (line,) = (line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


@pytest.mark.parametrize("workers", [1, 2])
def test_a_scrape_shows_what_the_workers_use(tmp_path: Path, serve: Serve, workers: int) -> None:
    begun = time.time()
    with serve(new_home(tmp_path), workers=workers) as server:
        processes = workers_of(server) if workers > 1 else [server.pid]
        total = sum(map(_resident_bytes, processes))
        # a worker that has not updated its gauges yet is missing
        eventually(lambda: 0.7 * total < _scraped(server).value("process_resident_memory_bytes") < 2 * total)
        seen = _scraped(server)
        assert 0.05 < seen.value("process_cpu_seconds_total") < 240
        assert 5 < seen.value("process_open_fds") < seen.value("process_max_fds")
        assert begun - 60 < seen.value("process_start_time_seconds") < time.time() + 1
        earlier = seen.value("process_cpu_seconds_total")
        eventually(lambda: _scraped(server).value("process_cpu_seconds_total") > earlier)


def test_the_limit_of_files_is_shown_while_no_file_can_be_opened() -> None:
    metrics = VaultMetrics()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, before[1]))
    try:
        metrics.process.publish()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert b"process_max_fds 1.0" in generate_latest(metrics.registry)
