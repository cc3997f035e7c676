"""The memory of one worker on the embedded store after a load."""

from __future__ import annotations

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Plan
from benchmarks.requests import new_user_ids
from benchmarks.table import Line, Target

_STORES = 2_500
_REVEALS = 2_500
_MEGABYTE = 1_000_000


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_STORES)
    reveals = tuple(bench.requests.reveal(user_id) for user_id in user_ids[:_REVEALS])
    with bench.servers.vault("memory") as vault:
        before = vault.resident_bytes()
        bench.stored(vault, user_ids)
        bench.drive(Plan(port=vault.port, requests=reveals, connections=CONNECTIONS, seconds=60.0))
        after = vault.resident_bytes()
    return [
        Line(
            "resident memory, SQLite, after 5 000 requests",
            after / _MEGABYTE,
            "MB",
            after / before,
            "before the first",
            Target(at_most=110),
        )
    ]
