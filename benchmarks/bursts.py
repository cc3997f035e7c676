"""Many new connections at once: the time from the start to each one's first answer, while all repeat a reveal."""

from __future__ import annotations

from statistics import median, quantiles
from typing import Final

from benchmarks.bench import Bench
from benchmarks.entrants import TOKENS, WORKERS, workers_text
from benchmarks.load import Plan
from benchmarks.requests import new_user_ids
from benchmarks.table import Line, Target

_TARGETS_MS: Final = {64: 60.0, 200: 250.0}


def measure(bench: Bench) -> list[Line]:
    lines = []
    user_ids = new_user_ids(TOKENS)
    requests = tuple(map(bench.requests.reveal, user_ids))
    for workers in WORKERS:
        with bench.servers.vault(f"bursts-{workers}", workers=workers) as vault:
            bench.stored(vault, user_ids)
            bench.over_and_over(vault, requests)()
            for connections, at_most in _TARGETS_MS.items():
                plan = Plan(
                    port=vault.port,
                    requests=requests,
                    connections=connections,
                    seconds=bench.load_seconds,
                    over_and_over=True,
                    at_once=True,
                )
                p99s = [
                    quantiles(bench.drive(plan).firsts, n=100, method="inclusive")[98] * 1_000
                    for _ in range(bench.turns)
                ]
                lines.append(
                    Line(
                        f"{connections} new connections at once, {workers_text(workers)}: p99 of the first answer",
                        median(p99s),
                        "ms",
                        target=Target(at_most=at_most) if workers == 1 else None,
                    )
                )
    return lines
