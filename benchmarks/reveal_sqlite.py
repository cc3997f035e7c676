"""A reveal on the embedded store, beside an empty route of the same application."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.constant_app import PATH
from benchmarks.load import Load
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, median_ratio, percentile, run_rounds
from benchmarks.table import Line, Target

TOKENS = 500


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(TOKENS)
    with (
        bench.servers.vault("reveal") as vault,
        bench.servers.program("constant", "benchmarks.constant_app") as constant,
    ):
        bench.stored(vault, user_ids)
        reveals, constants = run_rounds(
            [
                bench.over_and_over(vault, tuple(bench.requests.reveal(user_id) for user_id in user_ids)),
                bench.over_and_over(constant, (bench.requests.get(PATH),)),
            ],
            rounds=bench.rounds,
        )
    return [
        Line(
            "reveal, SQLite",
            median_rate(reveals),
            "requests/s",
            median_ratio(reveals, constants),
            "the constant route",
            Target(at_least=0.6, of_ratio=True),
        ),
        Line("constant route, same app and key check", median_rate(constants), "requests/s"),
        *latency_lines("reveal, SQLite", reveals, constants, "the constant route"),
    ]


def latency_lines(name: str, loads: list[Load], baseline: list[Load], baseline_name: str) -> list[Line]:
    """Return the median and the 99th percentile over all rounds."""
    return [
        Line(
            f"{name}, p{percent} at 16 connections",
            percentile(loads, percent) * 1_000,
            "ms",
            percentile(loads, percent) / percentile(baseline, percent),
            baseline_name,
        )
        for percent in (50, 99)
    ]
