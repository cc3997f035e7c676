"""Rounds: contestants run one after another in each, so other load on the machine affects all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import TypeVar

from benchmarks.load import Load

Contestant = Callable[[], Load]
Result = TypeVar("Result")


def run_rounds(contestants: Sequence[Callable[[], Result]], *, turns: int) -> list[list[Result]]:
    """Run the contestants for a warm-up round and then `turns` rounds; return each one's results."""
    for contestant in contestants:
        contestant()
    results = [[contestant() for contestant in contestants] for _ in range(turns)]
    return [list(one) for one in zip(*results, strict=True)]


def median_rate(loads: Sequence[Load]) -> float:
    return median(load.rate for load in loads)


def median_ratio(loads: Sequence[Load], baseline: Sequence[Load]) -> float:
    """Return the median ratio of the two loads of one round."""
    return median(load.rate / other.rate for load, other in zip(loads, baseline, strict=True))


def percentile(loads: Sequence[Load], percent: int) -> float:
    """Return the latency, in seconds, over all rounds."""
    return quantiles([latency for load in loads for latency in load.latencies], n=100, method="inclusive")[percent - 1]
