"""Reveal of 100 tokens in one request, beside OpenBao's single reads, because it has no batch."""

from __future__ import annotations

from typing import Final

from benchmarks.bench import Bench
from benchmarks.entrants import BATCH, Field
from benchmarks.side_by_side import Ratio, closed_lines, closed_loop, open_loop
from benchmarks.table import Line

_RATIOS: Final = (
    Ratio(f"batch of {BATCH}, SQLite, 2 workers", "read, OpenBao raft", 6.0),
    Ratio(f"batch of {BATCH}, SQLite, 2 workers", "read, OpenBao file", 6.0),
    Ratio(f"batch of {BATCH}, PostgreSQL, 2 workers", "read, OpenBao raft"),
    Ratio(f"batch of {BATCH}, PostgreSQL, 1 worker", f"batch of {BATCH}, Supabase, 1 worker"),
)


def measure(bench: Bench, field: Field) -> list[Line]:
    entrants = [one for one in field.batches() if "with audit" not in one.name]
    reads = [one for one in field.reveals() if one.name in {"read, OpenBao raft", "read, OpenBao file"}]
    closed = closed_loop(bench, [*entrants, *reads])
    opened = open_loop(bench, entrants, closed)
    return [*closed_lines(closed, _RATIOS, unit="tokens/s"), *opened]
