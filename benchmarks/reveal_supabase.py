"""A reveal on Supabase, beside the same query through the untuned library."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.requests import new_user_ids
from benchmarks.reveal_sqlite import latency_lines
from benchmarks.rounds import median_rate, median_ratio, run_rounds
from benchmarks.servers import supabase_project
from benchmarks.table import Line, Target

TOKENS = 200
MANY_CONNECTIONS = 64
_BASELINE = "an untuned supabase client"


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(TOKENS)
    reveals = tuple(bench.requests.reveal(user_id) for user_id in user_ids)
    with (
        supabase_project(bench.folder, bench.reaper) as project,
        bench.servers.vault("supabase", {**project, "TOKEN_STORE": "supabase"}) as vault,
        bench.servers.program("untuned", "benchmarks.untuned_supabase", project) as untuned,
    ):
        bench.stored(vault, user_ids)
        vaults, untuneds, vaults_many, untuneds_many = run_rounds(
            [
                bench.over_and_over(server, reveals, connections=connections)
                for connections in (16, MANY_CONNECTIONS)
                for server in (vault, untuned)
            ],
            rounds=bench.rounds,
        )
    return [
        Line(
            "reveal, Supabase",
            median_rate(vaults),
            "requests/s",
            median_ratio(vaults, untuneds),
            _BASELINE,
            Target(at_least=2.0, of_ratio=True),
        ),
        Line("untuned supabase client, no key check, no decryption", median_rate(untuneds), "requests/s"),
        Line(
            f"reveal, Supabase, {MANY_CONNECTIONS} connections",
            median_rate(vaults_many),
            "requests/s",
            median_ratio(vaults_many, untuneds_many),
            _BASELINE,
        ),
        *latency_lines("reveal, Supabase", vaults, untuneds, _BASELINE),
    ]
