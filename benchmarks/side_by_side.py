"""The runner of reveal, batch and store: interleaved turns of a closed loop, then of an open loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Final

from benchmarks.bench import Bench
from benchmarks.entrants import Entrant
from benchmarks.load import Load, OpenPlan, Plan
from benchmarks.processor import processor_seconds, waiting_seconds
from benchmarks.table import Line, Target, number

_OPEN_SHARE: Final = 0.5  # of the rate of the closed loop
_OPEN_TARGET: Final = Target(at_most=20.0)  # of the vault with two workers, but for batches
_PROMPT: Final = ("reveal, ", "store, ")
_MICROSECONDS: Final = 1e6


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one entrant; processor times, and the server's wait for a processor, are of one token."""

    load: Load
    rate: float
    server_us: float
    wait_us: float
    database_us: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """The rate of one entrant to that of another, and the target of the ratio."""

    entrant: str
    baseline: str
    at_least: float | None = None


def closed_loop(bench: Bench, entrants: Sequence[Entrant]) -> dict[str, list[Turn]]:
    """Return each entrant's turns; the entrants take turns in each round."""
    for entrant in entrants:
        _closed_turn(bench, entrant, bench.load_seconds / 3)
    turns: dict[str, list[Turn]] = {entrant.name: [] for entrant in entrants}
    for _ in range(bench.turns):
        for entrant in entrants:
            turns[entrant.name].append(_closed_turn(bench, entrant, bench.load_seconds))
    return turns


def open_loop(bench: Bench, entrants: Sequence[Entrant], closed: dict[str, list[Turn]]) -> list[Line]:
    """Return a line for each entrant at half of its median rate in the closed loop."""
    turns: dict[str, list[Turn]] = {entrant.name: [] for entrant in entrants}
    rates = {entrant.name: _OPEN_SHARE * median_rate(closed[entrant.name]) / entrant.tokens for entrant in entrants}
    for _ in range(bench.turns):
        for entrant in entrants:
            turns[entrant.name].append(_open_turn(bench, entrant, rates[entrant.name]))
    return [_open_line(entrant, turns[entrant.name]) for entrant in entrants]


def closed_lines(closed: dict[str, list[Turn]], ratios: Iterable[Ratio], *, unit: str = "requests/s") -> list[Line]:
    """Return a line for each ratio whose entrants ran, then one for each entrant."""
    lines = []
    for ratio in ratios:
        if ratio.entrant in closed and ratio.baseline in closed:
            value = median(
                turn.rate / other.rate
                for turn, other in zip(closed[ratio.entrant], closed[ratio.baseline], strict=True)
            )
            target = None if ratio.at_least is None else Target(at_least=ratio.at_least, of_ratio=True)
            lines.append(Line(ratio.entrant, ratio=value, baseline=ratio.baseline, target=target))
    return lines + [
        Line(
            name,
            median_rate(turns),
            unit,
            p50_ms=_percentile(turns, 50),
            p99_ms=_percentile(turns, 99),
            server_us=median(turn.server_us for turn in turns),
            wait_us=max(0.0, median(turn.wait_us for turn in turns)) or None,
            database_us=median(turn.database_us for turn in turns) or None,
        )
        for name, turns in closed.items()
    ]


def median_rate(turns: Sequence[Turn]) -> float:
    return median(turn.rate for turn in turns)


def _closed_turn(bench: Bench, entrant: Entrant, seconds: float) -> Turn:
    plan = Plan(
        port=entrant.port,
        requests=entrant.requests(seconds),
        connections=entrant.connections,
        seconds=seconds,
        over_and_over=entrant.over_and_over,
    )
    return _measured(entrant, lambda: bench.drive(plan))


def _open_turn(bench: Bench, entrant: Entrant, per_second: float) -> Turn:
    plan = OpenPlan(
        port=entrant.port,
        requests=entrant.requests(bench.load_seconds),
        per_second=per_second,
        seconds=bench.load_seconds,
    )
    return _measured(entrant, lambda: bench.drive_open(plan))


def _measured(entrant: Entrant, drive: Callable[[], Load]) -> Turn:
    before = _spent(entrant)
    load = drive()
    tokens = len(load.latencies) * entrant.tokens
    each = ((now - then) / tokens * _MICROSECONDS for now, then in zip(_spent(entrant), before, strict=True))
    return Turn(load, load.rate * entrant.tokens, *each)


def _spent(entrant: Entrant) -> tuple[float, float, float]:
    """Return the server's processor time, its wait for a processor, and the database's processor time, in seconds."""
    return processor_seconds(entrant.server), waiting_seconds(entrant.server), processor_seconds(entrant.database)


def _open_line(entrant: Entrant, turns: Sequence[Turn]) -> Line:
    slowest = max(_turn_percentile(turn, 99) for turn in turns)
    return Line(
        f"{entrant.name}: open loop, slowest turn's p99",
        slowest,
        "ms",
        target=_OPEN_TARGET if entrant.name.startswith(_PROMPT) and entrant.name.endswith("2 workers") else None,
        note=f"{number(median_rate(turns) / entrant.tokens)} requests/s",
        p50_ms=_percentile(turns, 50),
        p99_ms=_percentile(turns, 99),
        server_us=median(turn.server_us for turn in turns),
        wait_us=max(0.0, median(turn.wait_us for turn in turns)) or None,
        database_us=median(turn.database_us for turn in turns) or None,
    )


def _percentile(turns: Sequence[Turn], percent: int) -> float:
    """Return the median over the turns, in milliseconds."""
    return median(_turn_percentile(turn, percent) for turn in turns)


def _turn_percentile(turn: Turn, percent: int) -> float:
    return quantiles(turn.load.latencies, n=100, method="inclusive")[percent - 1] * 1_000
