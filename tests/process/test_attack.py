"""A slow-loris client, bodies of 100 MB and a flood of old tokens, all at once: everybody else is served."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from benchmarks.attackers import prepare
from tests.process.home import new_home
from tests.process.wire import token_path, wires
from tests.process.workers import workers_of

if TYPE_CHECKING:
    from tests.process.server import Serve
    from tests.stack.reaper import Reaper

ATTACK_SECONDS = 5.0
MOST_KILOBYTES = 200_000


def test_all_others_get_right_answers_and_memory_stays_bounded(
    tmp_path: Path, serve: Serve, stack_reaper: Reaper
) -> None:
    with serve(new_home(tmp_path, REWRAP_ON_READ="false")) as server, wires(server, 4) as others:
        prepare(tmp_path / "data" / "vault.db", server.home.service_key, tmp_path / "users")
        command = [sys.executable, "-m", "benchmarks.attackers", str(server.port), str(tmp_path / "users")]
        attackers = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        stack_reaper.watch(attackers.pid, signal.SIGTERM)
        memory, asked = 0, 0
        try:
            until = time.monotonic() + ATTACK_SECONDS
            while time.monotonic() < until:
                for wire in others:
                    path, secret = token_path(uuid4()), f"1234~{asked}"
                    assert wire.call("PUT", path, {"access_token": secret}).status == 201
                    revealed = wire.call("GET", path)
                    assert (revealed.status, revealed.body["access_token"]) == (200, secret)
                    assert wire.call("DELETE", path).status == 204
                    asked += 1
                [worker] = workers_of(server)
                status = Path(f"/proc/{worker}/status").read_text()
                memory = max(memory, int(status.partition("VmRSS:")[2].split()[0]))
            assert attackers.poll() is None
        finally:
            attackers.kill()
            attackers.wait()
            stack_reaper.forget(attackers.pid)
        assert asked > 20
        assert memory < MOST_KILOBYTES
        output = server.stop().output
    assert output.count('"outcome":"integrity"') > 20, "the flood has derived keys"
    assert '"outcome":"body_too_large"' in output
    assert "internal_error" not in output
