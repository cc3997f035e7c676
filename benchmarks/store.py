"""Stores of new tokens, durable before the answer, beside OpenBao.

OpenBao flushes a write on its raft store, but not on its file store.
"""

from __future__ import annotations

from typing import Final

from benchmarks.bench import Bench
from benchmarks.entrants import Field
from benchmarks.side_by_side import Ratio, closed_lines, closed_loop, open_loop
from benchmarks.table import Line

_RATIOS: Final = (
    Ratio("store, SQLite, 2 workers", "write, OpenBao raft", 1.2),
    Ratio("store, SQLite, 2 workers", "write, OpenBao file"),
    Ratio("store, SQLite with audit, 2 workers", "write, OpenBao raft with audit"),
    Ratio("store, SQLite, 2 workers", "store, SQLite, 1 worker"),
    Ratio("store, PostgreSQL, 1 worker", "store, Supabase, 1 worker", 4.0),
    Ratio("store, PostgreSQL, 2 workers", "store, Supabase, 2 workers", 4.0),
)


def measure(bench: Bench, field: Field) -> list[Line]:
    entrants = field.stores()
    closed = closed_loop(bench, entrants)
    opened = open_loop(bench, [one for one in entrants if "with audit" not in one.name], closed)
    return [*closed_lines(closed, _RATIOS), *opened]
