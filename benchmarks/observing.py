"""Reveal on SQLite with metrics and log, beside runs without one or both."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final

from benchmarks.bench import Bench
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, median_ratio, run_rounds
from benchmarks.table import Line, Target

_TOKENS: Final = 500
_QUIET: Final = {"LOG_LEVEL": "ERROR"}
_UNCOUNTED: Final = {"METRICS": "false"}
_WAYS: Final = {
    "both off": _QUIET | _UNCOUNTED,
    "metrics on, log off": _QUIET,
    "metrics off, log on": _UNCOUNTED,
    "metrics and log on": {},
}


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    reveals = tuple(bench.requests.reveal(user_id) for user_id in user_ids)
    with ExitStack() as stack:
        vaults = [
            stack.enter_context(bench.servers.vault(f"observing-{number}", settings))
            for number, settings in enumerate(_WAYS.values())
        ]
        for vault in vaults:
            bench.stored(vault, user_ids)
        loads_of_ways = run_rounds([bench.over_and_over(vault, reveals) for vault in vaults], turns=bench.turns)
    baseline = loads_of_ways[0]
    return [
        Line(
            f"reveal, SQLite, {way}",
            median_rate(loads),
            "requests/s",
            median_ratio(loads, baseline),
            "both off",
            Target(at_least=0.75, of_ratio=True) if settings == {} else None,
        )
        for (way, settings), loads in zip(_WAYS.items(), loads_of_ways, strict=True)
    ]
