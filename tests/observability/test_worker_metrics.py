"""`/metrics` of several worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.observability.metrics.registry import Exposition
from app.observability.metrics.worker_files import WorkerFolder
from tests.support.oauth.stand_in import OAuthStandIn, oauth_stand_in
from tests.support.observability.exposed import Exposed, scraped
from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path
from tests.support.process.workers import workers_of
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.waiting import eventually


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **settings: str) -> tuple[Home, Path]:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))  # which the server inherits
    return new_home(tmp_path, **settings), temporary


def _store_one(server: Server, *, times: int) -> None:
    """Store over a new connection each time, which any worker accepts."""
    for _ in range(times):
        with server.client() as client:
            assert client.put(token_path(uuid4()), json={"access_token": "x"}).status_code == 201


def _refresh_one(server: Server, provider: OAuthStandIn, *, times: int) -> None:
    """Refresh a token that has expired, over a new connection each time."""
    for _ in range(times):
        path = f"/v1/users/{uuid4()}/tokens/acme"
        given = {"access_token": "x", "refresh_token": provider.seed(), "expires_at": "2026-01-01T00:00:00Z"}
        with server.client() as client:
            assert client.put(path, json=given).status_code == 201
        with server.client() as client:
            assert client.get(path).status_code == 200


def _scraped(server: Server) -> Exposed:
    with server.client() as client:
        return scraped(client)


def _refreshes(seen: Exposed) -> tuple[float, float]:
    """Return the refreshes that succeeded, and the answers that are not stored."""
    succeeded = seen.value("token_vault_refreshes_total", provider="acme", outcome="success")
    return succeeded, seen.value("token_vault_refreshes_unwritten", provider="acme")


def _stores(seen: Exposed) -> float:
    return seen.value("token_vault_token_operations_total", operation="store", provider="canvas", outcome="success")


def test_any_worker_shows_all_and_a_dead_ones_counters_stay(
    tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, provider: OAuthStandIn
) -> None:
    home, temporary = _home(tmp_path, monkeypatch, OAUTH_PROVIDERS=json.dumps({"acme": provider.entry()}))
    with serve(home, workers=2) as server:
        [folder] = temporary.glob("token-vault-metrics-*")
        before = workers_of(server)
        _store_one(server, times=30)
        _refresh_one(server, provider, times=8)
        assert [_stores(_scraped(server)) for _ in range(6)] == [30] * 6, "from either worker"
        assert [_refreshes(_scraped(server)) for _ in range(6)] == [(8, 0)] * 6
        killed = min(before)
        assert [file for file in folder.glob("gauge_live*.db") if file.name.endswith(f"_{killed}.db")]
        os.kill(killed, signal.SIGKILL)
        _wait_for_a_new_worker(server, killed)
        seen = _scraped(server)
        assert (_stores(seen), *_refreshes(seen)) == (30, 8, 0), "the counters of a dead worker stay"
        assert [file for file in folder.glob("gauge_live*.db") if file.name.endswith(f"_{killed}.db")] == []
        assert seen.value("token_vault_build_info", **dict(next(iter(seen.labelled("token_vault_build_info"))))) == 1
        assert seen.value("token_vault_ready") == 1
        assert "pid=" not in seen.text
        _store_one(server, times=5)
        assert _stores(_scraped(server)) == 35
        assert server.stop().exit_code == 0
    assert list(temporary.glob("token-vault-metrics-*")) == [], "the folder is removed at the end"


def _wait_for_a_new_worker(server: Server, killed: int) -> None:
    def replaced() -> bool:
        workers = workers_of(server)
        return killed not in workers and len(workers) == 2 and _answers(server)

    eventually(replaced, within_seconds=120)


def _answers(server: Server) -> bool:
    try:
        return httpx.get(f"{server.url}/healthz", trust_env=False, timeout=30, verify=PLAIN_HTTP).is_success
    except httpx.TransportError:
        return False


def test_a_single_process_uses_no_metrics_folder(tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    home, temporary = _home(tmp_path, monkeypatch)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    settings = {**home.settings, "PROMETHEUS_MULTIPROC_DIR": str(theirs)}
    with serve(Home(home.folder, home.service_key, settings)) as server:
        _store_one(server, times=1)
        assert _stores(_scraped(server)) == 1
    assert list(theirs.iterdir()) == list(temporary.glob("token-vault-metrics-*")) == []


async def test_a_file_that_a_new_worker_has_not_filled_is_read_again(tmp_path: Path) -> None:
    """prometheus-client creates a file empty, then gives it its size."""
    begun = tmp_path / "counter_1.db"
    begun.touch()
    folder = WorkerFolder(tmp_path)
    scrape = asyncio.create_task(Exposition(registry=folder.registry, update=lambda: None).text())
    await asyncio.wait([scrape], timeout=0.05)
    begun.write_bytes(bytes(4096))
    assert await scrape == b""
    folder.close()
