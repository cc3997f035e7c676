"""Acknowledged writes survive `kill -9`.

The kernel keeps what a killed process has written, so this does not show that an answer waits for the disk.
`test_races` shows that no answer precedes its commit: other processes read each write once it is acknowledged. That a
commit survives the loss of power rests on SQLite's `synchronous = FULL`.
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
from tests.support.sizes import size
from tests.support.waiting import eventually

CLIENTS = 16
ACKNOWLEDGED_WRITES = size(200, 1_000)
LONGEST_WAIT_SECONDS = 0.25
BOUND_SECONDS = 180  # shows a hang


def _write_until_killed(serve: Serve, home: Home, *, workers: int) -> dict[UUID, int]:
    """Kill the server at a random moment after the writes; return the acknowledged version of each user's token."""
    with serve(home, workers=workers) as server:
        clients = [StoringClient(server) for _ in range(CLIENTS)]
        try:
            eventually(
                lambda: (
                    any(client.unexpected for client in clients)
                    or sum(client.acknowledgements for client in clients) >= ACKNOWLEDGED_WRITES
                ),
                within_seconds=BOUND_SECONDS,
            )
            time.sleep(random.uniform(0, LONGEST_WAIT_SECONDS))  # noqa: S311  a moment, not a secret
        finally:
            server.kill()
            for client in clients:
                client.join()
    assert not [status for client in clients for status in client.unexpected]
    return {user_id: version for client in clients for user_id, version in client.acknowledged.items()}


def _is_as_acknowledged(wire: Wire, user_id: UUID, version: int) -> bool:
    """Whether the token has the secret of the acknowledged write, or of the next one."""
    answer = wire.call("GET", token_path(user_id))
    return answer.status == 200 and answer.body["access_token"] in {
        secret_of(user_id, version),
        secret_of(user_id, version + 1),
    }


@pytest.mark.parametrize(("workers", "kills"), [(1, size(2, 3)), (2, size(1, 2))], ids=["one process", "two workers"])
def test_every_acknowledged_write_survives_kill_9(tmp_path: Path, serve: Serve, workers: int, kills: int) -> None:
    home = new_home(tmp_path)
    acknowledged: dict[UUID, int] = {}
    for _ in range(kills):
        acknowledged |= _write_until_killed(serve, home, workers=workers)
    assert sum(acknowledged.values()) >= kills * ACKNOWLEDGED_WRITES
    assert set(acknowledged.values()) == {1, 2}
    with serve(home) as server, wires(server, 1) as (wire,):
        lost = [user_id for user_id, version in acknowledged.items() if not _is_as_acknowledged(wire, user_id, version)]
    assert lost == []
