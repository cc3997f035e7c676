"""SIGTERM in the middle of the work: the exit is clean, and what was acknowledged is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.process.home import new_home
from tests.support.process.server import Serve
from tests.support.process.storing_client import StoringClient, secret_of
from tests.support.process.wire import token_path, wires
from tests.support.waiting import eventually

CLIENTS = 16


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_under_load(tmp_path: Path, serve: Serve, workers: int) -> None:
    home = new_home(tmp_path)
    with serve(home, workers=workers) as server:
        clients = [StoringClient(server) for _ in range(CLIENTS)]
        try:
            eventually(lambda: sum(client.acknowledgements for client in clients) > 300, within_seconds=30)
            ended = server.stop()
        finally:
            server.kill()
            for client in clients:
                client.join()
    assert ended.exit_code == 0
    assert "Traceback" not in ended.output
    assert [status for client in clients for status in client.unexpected] == []
    acknowledged = {user_id: version for client in clients for user_id, version in client.acknowledged.items()}
    with serve(home) as server, wires(server, 1) as (wire,):
        for user_id, version in acknowledged.items():
            answer = wire.call("GET", token_path(user_id))
            assert answer.status == 200, json.dumps(answer.body)
            assert answer.body["version"] in {version, version + 1}, "the next one may have been under way"
            assert answer.body["access_token"] == secret_of(user_id, answer.body["version"])
