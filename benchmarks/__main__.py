"""`python -m benchmarks`: run every measurement, or one of them, and print one table."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from benchmarks import (
    attack,
    audit,
    encryption,
    kms,
    memory,
    observing,
    on_behalf_of,
    reveal_sqlite,
    reveal_supabase,
    rewrap,
    rewrap_runs,
    startup,
    store_sqlite,
)
from benchmarks.bench import Bench, opened
from benchmarks.client import client_rate
from benchmarks.table import Line, render

_MEASUREMENTS: dict[str, Callable[[Bench], list[Line]]] = {
    "reveal-sqlite": reveal_sqlite.measure,
    "observing": observing.measure,
    "on-behalf-of": on_behalf_of.measure,
    "store-sqlite": store_sqlite.measure,
    "audit": audit.measure,
    "reveal-supabase": reveal_supabase.measure,
    "encryption": encryption.measure,
    "kms": kms.measure,
    "rewrap": rewrap.measure,
    "rewrap-memory": rewrap_runs.memory,
    "attack": attack.measure,
    "memory": memory.measure,
    "startup": startup.measure,
}
_LONGEST_SECONDS = 1_800
_QUIET_LOAD = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about two minutes, and noisier")
    parser.add_argument("--only", choices=_MEASUREMENTS, help="run one measurement")
    arguments = parser.parse_args()
    # raise exceptions, so that every started process is stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"gave up after {_LONGEST_SECONDS} s"))
    signal.alarm(_LONGEST_SECONDS)

    started = time.monotonic()
    load_before = os.getloadavg()[0]
    lines: list[Line] = []
    with opened(quick=arguments.quick) as bench:
        for name, measure in _MEASUREMENTS.items():
            if arguments.only in {None, name}:
                print(f"{name} …", file=sys.stderr, flush=True)
                lines += measure(bench)
        notes = _notes(bench)
    print(render(lines))
    print(f"\n{notes} Load before the run: {load_before:.1f}. {time.monotonic() - started:.0f} s in all.")
    if load_before > _QUIET_LOAD:
        print("Another program kept the machine busy: these figures are too low. Run again.")


def _notes(bench: Bench) -> str:
    """Describe the limits of the figures: the machine, its disk, and the client."""
    busiest = max((load.client_busy for load in bench.loads), default=0.0)
    return (
        f"{os.cpu_count()} cores, which servers and client share; Python {platform.python_version()}. "
        f"One flush to disk: {_flush_seconds(bench.folder) * 1e6:.0f} us. "
        f"The client alone: {client_rate(bench):,.0f} requests/s; at its busiest it took {busiest:.0%} of a core."
    )


def _flush_seconds(folder: Path) -> float:
    taken = []
    with (folder / "flush").open("wb", buffering=0) as file:
        for _ in range(100):
            file.write(b"." * 4096)
            start = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - start)
    return median(taken)


if __name__ == "__main__":
    main()
