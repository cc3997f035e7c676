"""The memory of one worker on the embedded store after a million reveals."""

from __future__ import annotations

from benchmarks.bench import Bench
from benchmarks.requests import new_user_ids
from benchmarks.table import Line, Target

_TOKENS = 2_500
_REVEALS = 1_000_000
_QUICK_REVEALS = 20_000
_MEGABYTE = 1_000_000


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    wanted, done = _QUICK_REVEALS if bench.quick else _REVEALS, 0
    with bench.servers.vault("memory") as vault:
        before = vault.resident_bytes()
        bench.stored(vault, user_ids)
        turn = bench.over_and_over(vault, tuple(map(bench.requests.reveal, user_ids)))
        while done < wanted:
            done += len(turn().latencies)
        after = vault.resident_bytes()
    return [
        Line(
            f"resident memory, SQLite, after {_TOKENS} stores and {done} reveals",
            after / _MEGABYTE,
            "MB",
            after / before,
            "before the first",
            Target(at_most=85),
        )
    ]
