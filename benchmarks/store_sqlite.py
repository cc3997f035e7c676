"""Stores of new tokens on the embedded store, durable before the answer."""

from __future__ import annotations

from functools import partial

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Load, Plan
from benchmarks.raw_store import store_raw
from benchmarks.requests import new_user_ids
from benchmarks.rounds import Contestant, median_rate, median_ratio, run_rounds
from benchmarks.servers import Server
from benchmarks.table import Line, Target

# more than can be stored, so a load ends by its time
_PER_SECOND = 8_000


def measure(bench: Bench) -> list[Line]:
    with bench.servers.vault("store") as vault, bench.servers.vault("store-2", workers=2) as two_workers:
        contestants: list[Contestant] = [
            _stores(bench, vault, CONNECTIONS),
            _stores(bench, vault, 1),
            _stores(bench, two_workers, CONNECTIONS),
            partial(_raw, bench),
        ]
        many, one, two, raw = run_rounds(
            contestants,
            rounds=bench.rounds,
        )
    return [
        Line(
            "store, SQLite, 16 clients",
            median_rate(many),
            "tokens/s",
            median_ratio(many, raw),
            "its repository without HTTP",
            Target(at_least=2_000),
        ),
        Line(
            "store, SQLite, 1 client", median_rate(one), "tokens/s", median_ratio(one, many), "16 clients, one worker"
        ),
        Line(
            "store, SQLite, 16 clients, 2 workers",
            median_rate(two),
            "tokens/s",
            median_ratio(two, many),
            "16 clients, one worker",
        ),
        Line("its repository without HTTP, 16 writers", median_rate(raw), "tokens/s"),
    ]


def _stores(bench: Bench, server: Server, connections: int) -> Contestant:
    def load() -> Load:
        user_ids = new_user_ids(int(_PER_SECOND * bench.load_seconds))
        requests = tuple(bench.requests.store(user_id) for user_id in user_ids)
        return bench.drive(
            Plan(port=server.port, requests=requests, connections=connections, seconds=bench.load_seconds)
        )

    return load


def _raw(bench: Bench) -> Load:
    path = bench.folder / "raw.db"
    return bench.client.submit(store_raw, path, writers=CONNECTIONS, seconds=bench.load_seconds).result()
