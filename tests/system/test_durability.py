"""What was acknowledged is there after a `kill -9`, exactly as it was acknowledged or as it was written later.

A kill takes nothing back that has reached the kernel, so it cannot show that an answer waits for the disk. That no
answer precedes its commit is shown in `test_races`, where other processes look for each write the moment it is
acknowledged; that a commit outlives the loss of power rests on SQLite's `synchronous = FULL`.
"""

from __future__ import annotations

import random
import time
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve
from tests.support.process.storing_client import StoringClient, secret_of
from tests.support.process.wire import Wire, token_path, wires

CLIENTS = 16
ACKNOWLEDGED_WRITES = 1_000
LONGEST_WAIT_SECONDS = 0.25
WRITING_SECONDS = 60


def _write_until_killed(serve: Serve, home: Home, *, workers: int) -> dict[UUID, int]:
    """Kill the server at a random moment after a thousand acknowledged writes; return what was acknowledged."""
    with serve(home, workers=workers) as server:
        clients = [StoringClient(server) for _ in range(CLIENTS)]
        try:
            deadline = time.monotonic() + WRITING_SECONDS
            while sum(client.acknowledgements for client in clients) < ACKNOWLEDGED_WRITES:
                assert time.monotonic() < deadline
                assert not any(client.unexpected for client in clients)
                time.sleep(0.01)
            time.sleep(random.uniform(0, LONGEST_WAIT_SECONDS))  # noqa: S311  a moment, not a secret
        finally:
            server.kill()
            for client in clients:
                client.join()
    assert not [status for client in clients for status in client.unexpected]
    return {user_id: version for client in clients for user_id, version in client.acknowledged.items()}


def _is_as_acknowledged(wire: Wire, user_id: UUID, version: int) -> bool:
    """Whether a token has the acknowledged version or the next, which was under way, with that version's secret."""
    answer = wire.call("GET", token_path(user_id))
    if answer.status != 200 or answer.body["version"] not in {version, version + 1}:
        return False
    secret: str = answer.body["access_token"]
    return secret == secret_of(user_id, answer.body["version"])


@pytest.mark.parametrize(("workers", "kills"), [(1, 3), (2, 2)], ids=["one-process-three-times", "two-workers-twice"])
def test_every_acknowledged_write_outlives_kill_9(tmp_path: Path, serve: Serve, workers: int, kills: int) -> None:
    home = new_home(tmp_path)
    acknowledged: dict[UUID, int] = {}
    for _ in range(kills):
        acknowledged |= _write_until_killed(serve, home, workers=workers)
    assert sum(acknowledged.values()) >= kills * ACKNOWLEDGED_WRITES
    assert set(acknowledged.values()) == {1, 2}
    with serve(home) as server, wires(server, 1) as (wire,):
        lost = [user_id for user_id, version in acknowledged.items() if not _is_as_acknowledged(wire, user_id, version)]
    assert lost == []
