"""Measure side by side and print one table in Markdown: reveal, batch, store, bursts of connections, and refresh.

`--only` runs one measurement; the ones after `startup` in its list run only this way. docs/performance.md explains the
table and has the last full run.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from statistics import median

from benchmarks import (
    attack,
    audit,
    batch,
    bursts,
    encryption,
    generator,
    kms,
    memory,
    observing,
    on_behalf_of,
    refresh,
    reveal,
    rewrap,
    rewrap_runs,
    startup,
    store,
)
from benchmarks.bench import Bench, opened
from benchmarks.entrants import Field, opened_field
from benchmarks.table import Line, render

_SIDE_BY_SIDE: dict[str, Callable[[Bench, Field], list[Line]]] = {
    "reveal": reveal.measure,
    "store": store.measure,
    "batch": batch.measure,
}
_BESIDES: dict[str, Callable[[Bench], list[Line]]] = {
    "bursts": bursts.measure,
    "refresh": refresh.measure,
    "startup": startup.measure,
}
_SINGLE: dict[str, Callable[[Bench], list[Line]]] = {
    "memory": memory.measure,
    "observing": observing.measure,
    "audit": audit.measure,
    "on-behalf-of": on_behalf_of.measure,
    "attack": attack.measure,
    "encryption": encryption.measure,
    "kms": kms.measure,
    "rewrap": rewrap.measure,
    "rewrap-memory": rewrap_runs.memory,
}
_LONGEST_SECONDS = 1_800
_QUIET_LOAD = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=[*_SIDE_BY_SIDE, *_BESIDES, *_SINGLE], help="run one measurement")
    parser.add_argument("--turns", type=int, default=3, help="turns of each contestant (default 3)")
    parser.add_argument("--quick", action="store_true", help="shorter turns, and two of them: noisier")
    parser.add_argument("--bao", type=Path, help="program of OpenBao; left out without it")
    arguments = parser.parse_args()
    if arguments.bao is not None and not os.access(arguments.bao, os.X_OK):
        parser.error(f"--bao: {arguments.bao} is not a program")
    # raise exceptions, so that every started process is stopped
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"gave up after {_LONGEST_SECONDS} s"))
    signal.alarm(_LONGEST_SECONDS)

    started = time.monotonic()
    load_before = os.getloadavg()[0]
    chosen = [*_SIDE_BY_SIDE, *_BESIDES] if arguments.only is None else [arguments.only]
    turns = 2 if arguments.quick else arguments.turns
    with opened(quick=arguments.quick, turns=turns, openbao=arguments.bao and arguments.bao.absolute()) as bench:
        lines = _measured(bench, chosen)
        load_after = os.getloadavg()[0]
        machine = _machine(bench)
        notes = [generator.describe(bench)]
    if arguments.bao is None:
        notes.append("OpenBao was left out: its program was not given (`make bench BAO=path`).")
    if load_before > _QUIET_LOAD:
        notes.append("Another program kept the machine busy: compare ratios and processor times only.")
    print(render(lines))
    print(
        f"\n{machine} Load average before the run {load_before:.1f}, after it {load_after:.1f}. "
        f"{time.strftime('%Y-%m-%d')}, {turns} turns of {bench.load_seconds} s, "
        f"{time.monotonic() - started:.0f} s in all. {' '.join(notes)}"
    )


def _measured(bench: Bench, chosen: list[str]) -> list[Line]:
    lines = []
    started = time.monotonic()
    side_by_side = [name for name in chosen if name in _SIDE_BY_SIDE]
    with opened_field(bench) if side_by_side else nullcontext() as field:
        for name in side_by_side:
            print(f"{time.monotonic() - started:.0f} s: {name} …", file=sys.stderr, flush=True)
            assert field is not None
            lines += _SIDE_BY_SIDE[name](bench, field)
    others = _BESIDES | _SINGLE
    for name in (name for name in chosen if name in others):
        print(f"{time.monotonic() - started:.0f} s: {name} …", file=sys.stderr, flush=True)
        lines += others[name](bench)
    return lines


def _machine(bench: Bench) -> str:
    return (
        f"{os.cpu_count()} cores, which servers, databases and load generator share; "
        f"Python {platform.python_version()}; one flush to disk {_flush_seconds(bench.folder) * 1e6:.0f} µs."
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
