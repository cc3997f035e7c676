"""The time from the start of the process to its first answer."""

from __future__ import annotations

from statistics import median

from benchmarks.bench import Bench
from benchmarks.table import Line, Target


def measure(bench: Bench) -> list[Line]:
    firsts: list[float] = []
    agains: list[float] = []
    processor: list[float] = []
    for number in range(3 if bench.quick else 9):
        for times in (firsts, agains):
            with bench.servers.vault(f"start-{number}") as vault:
                times.append(vault.start_seconds)
                processor.append(vault.start_processor_seconds)
    first, again = median(firsts), median(agains)
    return [
        Line("start to first answer, new database", first, "s", target=Target(at_most=0.6)),
        Line("start to first answer, existing database", again, "s", again / first, "a new database"),
        Line("start to first answer, processor time", median(processor), "s"),
    ]
