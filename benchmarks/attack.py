"""What others notice while a slow-loris client, bodies of 100 MB and a flood of old tokens attack."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.attackers import prepare
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, percentile
from benchmarks.servers import stop
from benchmarks.table import Line, Target

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.bench import Bench

_TOKENS = 500
_WARM_UP_SECONDS = 2.0
_MEGABYTE = 1_000_000


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    # the attackers' tokens are not moved: each read of one has to cost what it costs
    with bench.servers.vault("attack", {"REWRAP_ON_READ": "false"}) as vault:
        bench.stored(vault, user_ids)
        folder = bench.folder / "attack"
        prepare(folder / "data" / "vault.db", bench.requests.service_key, folder / "users")
        others = bench.over_and_over(vault, tuple(bench.requests.reveal(user_id) for user_id in user_ids))
        others()
        quiet = [others() for _ in range(bench.rounds)]
        with _attacked(bench, vault.port, folder / "users"):
            attacked = [others() for _ in range(bench.rounds)]
            memory = vault.resident_bytes()
    calm, hurt = percentile(quiet, 99), percentile(attacked, 99)
    return [
        Line("reveal, SQLite, p99, quiet", calm * 1_000, "ms"),
        Line("reveal, SQLite, p99, under attack", hurt * 1_000, "ms", hurt / calm, "quiet", _within(3)),
        Line(
            "reveal, SQLite, under attack",
            median_rate(attacked),
            "requests/s",
            median_rate(attacked) / median_rate(quiet),
            "quiet",
        ),
        Line("resident memory under attack", memory / _MEGABYTE, "MB", target=Target(at_most=200)),
    ]


def _within(times: float) -> Target:
    return Target(at_most=times, of_ratio=True)


@contextmanager
def _attacked(bench: Bench, port: int, users: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.attackers", str(port), str(users)])
    bench.reaper.watch(process.pid, signal.SIGTERM)
    try:
        time.sleep(_WARM_UP_SECONDS)
        yield
    finally:
        stop(process)
        bench.reaper.forget(process.pid)
