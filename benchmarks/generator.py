"""The load generators' own cost, against a server of fixed answers."""

from __future__ import annotations

from statistics import quantiles
from typing import Final

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import OpenPlan, Plan, drive, drive_open

_OPEN_RATE: Final = 1_000.0


def describe(bench: Bench) -> str:
    with bench.servers.program("canned", "benchmarks.canned_server") as canned:
        requests = (bench.requests.get("/"),)
        closed = bench.client.submit(
            drive,
            Plan(port=canned.port, requests=requests, connections=CONNECTIONS, seconds=1.0, over_and_over=True),
        ).result()
        opened = bench.client.submit(
            drive_open, OpenPlan(port=canned.port, requests=requests, per_second=_OPEN_RATE, seconds=2.0)
        ).result()
    busiest = max((load.client_busy for load in bench.loads), default=0.0)
    p99 = quantiles(opened.latencies, n=100, method="inclusive")[98] * 1_000
    return (
        f"The load generator against fixed answers: closed loop {closed.rate:,.0f} requests/s; open loop at "
        f"{_OPEN_RATE:,.0f} requests/s p99 {p99:.1f} ms and "
        f"{opened.client_busy:.0%} of a core. At its busiest it took {busiest:.0%} of a core."
    )
