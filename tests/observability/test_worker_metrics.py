"""`/metrics` where `serve --workers` runs several processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.observability.exposed import Exposed, scraped
from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path
from tests.support.process.workers import workers_of
from tests.support.stack.loopback import PLAIN_HTTP

_WAIT_SECONDS = 20.0


def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Home, Path]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))  # which the server inherits
    return new_home(tmp_path), temporary


def _store_one(server: Server, *, times: int) -> None:
    """Store over a new connection each time, so that both workers get some."""
    for _ in range(times):
        with server.client() as client:
            assert client.put(token_path(uuid4()), json={"access_token": "x"}).status_code == 201


def _scraped(server: Server) -> Exposed:
    with server.client() as client:
        return scraped(client)


def _stores(seen: Exposed) -> float:
    return seen.value("token_vault_token_operations_total", operation="store", provider="canvas", outcome="success")


def test_any_worker_tells_for_all_and_a_killed_ones_counts_stay_while_its_gauges_go(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, temporary = _home(tmp_path, monkeypatch)
    with serve(home, workers=2) as server:
        [folder] = temporary.glob("token-vault-metrics-*")
        before = workers_of(server)
        _store_one(server, times=30)
        assert [_stores(_scraped(server)) for _ in range(6)] == [30] * 6, "whoever answers"
        killed = min(before)
        assert [file for file in folder.glob("gauge_live*.db") if file.name.endswith(f"_{killed}.db")]
        os.kill(killed, signal.SIGKILL)
        _wait_for_a_new_worker(server, killed)
        seen = _scraped(server)
        assert _stores(seen) == 30, "what a dead worker did was done"
        assert [file for file in folder.glob("gauge_live*.db") if file.name.endswith(f"_{killed}.db")] == []
        assert seen.value("token_vault_build_info", **dict(next(iter(seen.labelled("token_vault_build_info"))))) == 1
        assert seen.value("token_vault_ready") == 1
        assert "pid=" not in seen.text
        _store_one(server, times=5)
        assert _stores(_scraped(server)) == 35
        assert server.stop().exit_code == 0
    assert list(temporary.glob("token-vault-metrics-*")) == [], "the folder goes with the service"


def _wait_for_a_new_worker(server: Server, killed: int) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < deadline:
        workers = workers_of(server)
        if killed not in workers and len(workers) == 2 and _answers(server):
            return
        time.sleep(0.1)
    raise AssertionError(f"no new worker:\n{server.output}")


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz", trust_env=False, timeout=2, verify=PLAIN_HTTP).is_success
    except httpx.TransportError:
        return False


def test_one_process_makes_no_folder_and_takes_no_one_elses(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, temporary = _home(tmp_path, monkeypatch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    settings = {**home.settings, "PROMETHEUS_MULTIPROC_DIR": str(theirs)}
    with serve(Home(home.folder, home.service_key, settings)) as server:
        _store_one(server, times=1)
        assert _stores(_scraped(server)) == 1
    assert list(theirs.iterdir()) == list(temporary.glob("token-vault-metrics-*")) == []
