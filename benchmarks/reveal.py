"""Reveal of one token, beside the constant route, asyncpg alone, PostgREST itself and OpenBao."""

from __future__ import annotations

from typing import Final

from benchmarks.bench import Bench
from benchmarks.entrants import Field
from benchmarks.side_by_side import Ratio, closed_lines, closed_loop, open_loop
from benchmarks.table import Line

_MANY: Final = 64
_RATIOS: Final = (
    Ratio("reveal, SQLite, 1 worker", "constant route, 1 worker", 0.6),
    Ratio("reveal, SQLite, 2 workers", "constant route, 2 workers"),
    Ratio("reveal, SQLite, 2 workers", "read, OpenBao raft", 1.0),
    Ratio("reveal, SQLite, 2 workers", "read, OpenBao file", 1.0),
    Ratio("reveal, SQLite with audit, 2 workers", "read, OpenBao raft with audit", 1.0),
    Ratio("reveal, SQLite with audit, 2 workers", "read, OpenBao file with audit", 1.0),
    Ratio("reveal, PostgreSQL, 1 worker", "asyncpg alone, 1 worker", 0.5),
    Ratio("reveal, PostgreSQL, 2 workers", "asyncpg alone, 2 workers", 0.5),
    Ratio("reveal, PostgreSQL, 2 workers", "read, OpenBao raft"),
    Ratio("reveal, PostgreSQL, 1 worker", "reveal, Supabase, 1 worker", 2.0),
    Ratio(
        f"reveal, PostgreSQL, 1 worker, {_MANY} connections", f"reveal, Supabase, 1 worker, {_MANY} connections", 1.5
    ),
    Ratio("reveal, PostgreSQL, 2 workers", "reveal, Supabase, 2 workers"),
    Ratio("reveal, Supabase, 1 worker", "PostgREST itself"),
)


def measure(bench: Bench, field: Field) -> list[Line]:
    entrants = [*field.reveals(), *field.baselines]
    many = [
        entrant.with_connections(_MANY)
        for entrant in entrants
        if entrant.name in {"reveal, PostgreSQL, 1 worker", "reveal, Supabase, 1 worker"}
    ]
    closed = closed_loop(bench, [*entrants, *many])
    opened = open_loop(bench, [one for one in entrants if "with audit" not in one.name], closed)
    return [*closed_lines(closed, _RATIOS), *opened]
