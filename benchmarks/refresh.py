"""What freshness costs: a reveal of a fresh token with `min_ttl`, refreshes, and batches with tokens that are due.

The provider is a process of its own that answers after 50 ms. A refresh reads the row, claims it, asks the provider,
writes the new tokens and reads them; each token is refreshed once, so a turn begins with new ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.entrants import BATCH
from benchmarks.load import LOOPBACK, Load, Plan
from benchmarks.processor import processor_seconds
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, percentile, run_rounds
from benchmarks.servers import Server, supabase_project
from benchmarks.table import Line, Target

_TOKENS: Final = 500
_MIN_TTL_SECONDS: Final = 300
_FRESH_TURNS: Final = 5  # at least: two percent is little
_FRESH_SECONDS: Final = 6.0
_QUICK_FRESH_SECONDS: Final = 1.0
_REFRESHES: Final = 400
_REFRESHING_CONNECTIONS: Final = 64
_DUE_OF_A_BATCH: Final = 20
_BATCHES: Final = 5
_LONGEST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class _Vault:
    store: str
    server: Server
    database: tuple[int, ...] = ()


def measure(bench: Bench) -> list[Line]:
    with _vaults(bench) as (without, vaults):
        lines = _fresh(bench, without, vaults[0].server)
        for vault in vaults:
            lines += _refreshes(bench, vault)
        for vault in vaults:
            lines += _batches(bench, vault)
    return lines


@contextmanager
def _vaults(bench: Bench) -> Iterator[tuple[Server, list[_Vault]]]:
    """Start a vault that has no provider, and one with a provider on each store."""
    with ExitStack() as stack:
        provider = stack.enter_context(bench.servers.program("provider", "benchmarks.provider_app"))
        database = stack.enter_context(supabase_project(bench.folder, bench.reaper))
        postgres = (database.postgres_pid,)
        settings = {"OAUTH_PROVIDERS": json.dumps({"acme": _entry(provider)})}
        started = {
            "SQLite": ({}, ()),
            "PostgreSQL": ({"TOKEN_STORE": "postgres", "DATABASE_URL": database.url}, postgres),
            "Supabase": (
                {"TOKEN_STORE": "supabase", **database.supabase},
                (*postgres, database.postgrest_pid, database.gateway_pid),
            ),
        }
        without = stack.enter_context(bench.servers.vault("no-provider"))
        yield (
            without,
            [
                _Vault(store, stack.enter_context(bench.servers.vault(store, settings | chosen)), processes)
                for store, (chosen, processes) in started.items()
            ],
        )


def _entry(provider: Server) -> dict[str, object]:
    return {
        "token_url": f"http://{LOOPBACK}:{provider.port}/token",
        "client_auth": "basic",
        "client_id": "benchmarks",
        "client_secret": "of-the-benchmarks",
        "rotation": "single_use",
        "allow_insecure": True,
    }


def _fresh(bench: Bench, without: Server, vault: Server) -> list[Line]:
    """Compare the processor time of reveals of fresh tokens."""
    user_ids = new_user_ids(_TOKENS)
    for server in (without, vault):
        bench.stored(server, user_ids, partial(bench.requests.store_refreshable, due=False))
    plain = tuple(map(bench.requests.reveal_refreshable, user_ids))
    with_min_ttl = tuple(bench.requests.reveal_refreshable(one, min_ttl=_MIN_TTL_SECONDS) for one in user_ids)
    contestants = ((without, plain), (vault, plain), (vault, with_min_ttl))
    seconds = _QUICK_FRESH_SECONDS if bench.quick else _FRESH_SECONDS
    no_provider, no_min_ttl, min_ttl = run_rounds(
        [partial(_microseconds, bench, server, requests, seconds) for server, requests in contestants],
        turns=max(bench.turns, _FRESH_TURNS),
    )
    return [
        _time("fresh reveal, SQLite, no provider configured", no_provider),
        _time("fresh reveal, SQLite, no min_ttl", no_min_ttl, no_provider, "no provider configured"),
        _time("fresh reveal, SQLite, min_ttl", min_ttl, no_min_ttl, "no min_ttl", Target(at_most=1.02, of_ratio=True)),
    ]


def _time(
    name: str, turns: Sequence[float], others: Sequence[float] = (), baseline: str = "", target: Target | None = None
) -> Line:
    ratio = median(turn / other for turn, other in zip(turns, others, strict=True)) if others else None
    return Line(f"{name}, processor time", median(turns), "µs", ratio, baseline, target)


def _microseconds(bench: Bench, server: Server, requests: tuple[bytes, ...], seconds: float) -> float:
    """Return the processor time of the server for one request."""
    plan = Plan(port=server.port, requests=requests, connections=CONNECTIONS, seconds=seconds, over_and_over=True)
    before = processor_seconds([server.pid])
    load = bench.drive(plan)
    return (processor_seconds([server.pid]) - before) / len(load.latencies) * 1e6


def _refreshes(bench: Bench, vault: _Vault) -> list[Line]:
    turns = [_refreshing(bench, vault) for _ in range(bench.turns + 1)][1:]  # the first is a warm-up
    loads = [load for load, _, _ in turns]
    return [
        Line(
            f"refresh, {vault.store}, 1 worker, {_REFRESHING_CONNECTIONS} connections",
            median_rate(loads),
            "refreshes/s",
            p50_ms=percentile(loads, 50) * 1_000,
            p99_ms=percentile(loads, 99) * 1_000,
            server_us=median(server for _, server, _ in turns),
            database_us=median(database for _, _, database in turns) or None,
        )
    ]


def _refreshing(bench: Bench, vault: _Vault) -> tuple[Load, float, float]:
    """Reveal new tokens that are due; return also the processor time of each in server and database."""
    user_ids = _stored(bench, vault, _REFRESHES, due=True)
    requests = tuple(map(bench.requests.reveal_refreshable, user_ids))
    connections = _REFRESHING_CONNECTIONS
    plan = Plan(port=vault.server.port, requests=requests, connections=connections, seconds=_LONGEST_SECONDS)
    server, database = processor_seconds([vault.server.pid]), processor_seconds(vault.database)
    load = bench.drive(plan)
    server, database = processor_seconds([vault.server.pid]) - server, processor_seconds(vault.database) - database
    return load, server / _REFRESHES * 1e6, database / _REFRESHES * 1e6


def _batches(bench: Bench, vault: _Vault) -> list[Line]:
    fresh = _stored(bench, vault, BATCH, due=False)

    def batches_with(due: int) -> Load:
        requests = []
        for _ in range(_BATCHES):
            user_ids = _stored(bench, vault, due, due=True) + fresh[due:]
            requests.append(bench.requests.batch(user_ids, provider="acme"))
        plan = Plan(port=vault.server.port, requests=tuple(requests), connections=1, seconds=_LONGEST_SECONDS)
        return bench.drive(plan)

    ways: list[Callable[[], Load]] = [partial(batches_with, 0), partial(batches_with, _DUE_OF_A_BATCH)]
    none_due, some_due = run_rounds(ways, turns=bench.turns)
    return [
        _latency(f"batch of {BATCH}, {vault.store}, none due", none_due),
        _latency(f"batch of {BATCH}, {vault.store}, {_DUE_OF_A_BATCH} due", some_due),
    ]


def _latency(name: str, loads: Sequence[Load]) -> Line:
    return Line(f"{name}, latency", percentile(loads, 50) * 1_000, "ms", p99_ms=percentile(loads, 99) * 1_000)


def _stored(bench: Bench, vault: _Vault, count: int, *, due: bool) -> list[str]:
    user_ids = new_user_ids(count)
    if user_ids:
        bench.stored(vault.server, user_ids, partial(bench.requests.store_refreshable, due=due))
    return user_ids
