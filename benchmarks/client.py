"""The rate of the client against a server that costs nothing."""

from __future__ import annotations

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Plan, drive


def client_rate(bench: Bench) -> float:
    with bench.servers.program("canned", "benchmarks.canned_server") as canned:
        plan = Plan(
            port=canned.port,
            requests=(bench.requests.get("/"),),
            connections=CONNECTIONS,
            seconds=1.0,
            over_and_over=True,
        )
        return bench.client.submit(drive, plan).result().rate
