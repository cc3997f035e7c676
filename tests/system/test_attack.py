"""A slow-loris client, bodies of 100 MB and a flood of old tokens at once: other callers are served."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from benchmarks.attack import attacked_by, fewest_held
from benchmarks.attackers import prepare
from benchmarks.servers import resident_bytes
from tests.support.process.home import new_home
from tests.support.process.key_commands import create_key
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Answer, Wire, token_path, wires
from tests.support.process.workers import workers_of
from tests.support.sizes import SOAK
from tests.support.stack.reaper import Reaper

ATTACK_SECONDS = 2.0
HANG_SECONDS = 90.0
CALLS = 20
DERIVED = 5  # on a busy machine few, because derivations have a low priority
MOST_BYTES = 200_000_000


@pytest.mark.parametrize("workers", [1, 2] if SOAK else [2])
def test_other_callers_are_served_and_memory_stays_bounded(
    tmp_path: Path, serve: Serve, stack_reaper: Reaper, workers: int
) -> None:
    home = new_home(tmp_path, REWRAP_ON_READ="false", SERVICE_KEYS_FILE=str(tmp_path / "service-keys.json"))
    key = create_key(home, "--scope", "tokens:reveal", "--scope", "tokens:write", service="attackers")
    users = tmp_path / "users"
    with serve(home, workers=workers) as server, wires(server, 4) as others:
        prepare(tmp_path / "data" / "vault.db", key, users)
        memory, asked = 0, 0
        with attacked_by(stack_reaper, server.port, users, workers=workers) as loris:
            fewest_held(server.pid, server.port, loris)  # raises if a worker is not attacked
            began = time.monotonic()
            while time.monotonic() < began + ATTACK_SECONDS or asked < CALLS or not _is_attacked(server):
                assert time.monotonic() < began + HANG_SECONDS, server.output[-2_000:]
                for wire in others:
                    path, secret = token_path(uuid4()), f"1234~{asked}"
                    assert _answer(wire, "PUT", path, {"access_token": secret}).status in {201, 200}
                    revealed = _answer(wire, "GET", path)
                    assert (revealed.status, revealed.body["access_token"]) == (200, secret)
                    assert _answer(wire, "DELETE", path).status in {204, 404}
                    asked += 1
                memory = max(memory, *map(resident_bytes, workers_of(server)))
        assert memory < MOST_BYTES
        output = server.stop().output
    assert "internal_error" not in output


def _answer(wire: Wire, method: str, path: str, body: dict[str, Any] | None = None) -> Answer:
    """Return the answer, of another attempt if a commit takes longer than the vault waits, as on a busy disk.

    The first attempt may have done its work, so the answer may be that of a repetition.
    """
    until = time.monotonic() + HANG_SECONDS
    while (answer := wire.call(method, path, body)).status == 504:
        assert time.monotonic() < until
    return answer


def _is_attacked(server: Server) -> bool:
    """Whether the flood makes the vault derive keys, and large bodies are refused."""
    output = server.output
    return output.count('"outcome":"integrity"') >= DERIVED and '"outcome":"body_too_large"' in output
