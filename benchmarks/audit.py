"""A reveal on the embedded store with each AUDIT_SYNC mode, beside one without an audit trail."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Final

from app.security.keyring import new_key_text
from benchmarks.bench import Bench
from benchmarks.requests import new_user_ids
from benchmarks.rounds import median_rate, median_ratio, percentile, run_rounds
from benchmarks.table import Line, Target

TOKENS: Final = 500
_NONE: Final = "audit, metrics and log off"

# settings of production beside the audit trail; the baseline has none of them
OBSERVED: Final[Mapping[str, str]] = {"LOG_LEVEL": "INFO", "METRICS": "true"}
UNOBSERVED: Final[Mapping[str, str]] = {"LOG_LEVEL": "ERROR", "METRICS": "false"}


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(TOKENS)
    key = new_key_text()
    audited = {"AUDIT_LOG": "audit/audit.jsonl", "AUDIT_KEY": key}
    contestants = {_NONE: UNOBSERVED} | {
        f"audit {sync}": {**OBSERVED, **audited, "AUDIT_SYNC": sync} for sync in ("off", "interval", "always")
    }
    with ExitStack() as stack:
        reveals = []
        for name, settings in contestants.items():
            vault = stack.enter_context(bench.servers.vault(name.replace(" ", "-"), settings))
            bench.stored(vault, user_ids)
            reveals.append(bench.over_and_over(vault, tuple(bench.requests.reveal(user_id) for user_id in user_ids)))
        loads = dict(zip(contestants, run_rounds(reveals, turns=bench.turns), strict=True))
    baseline = loads[_NONE]
    lines = [Line(f"reveal, {_NONE}", median_rate(baseline), "requests/s")]
    for name in list(contestants)[1:]:
        target = Target(at_least=0.75, of_ratio=True) if name == "audit interval" else None
        ratio = median_ratio(loads[name], baseline)
        lines.append(Line(f"reveal, {name}", median_rate(loads[name]), "requests/s", ratio, _NONE, target))
    lines += [
        Line(
            f"reveal, {name}, p99 at 16 connections",
            percentile(loads[name], 99) * 1_000,
            "ms",
            None if name == _NONE else percentile(loads[name], 99) / percentile(baseline, 99),
            "" if name == _NONE else _NONE,
        )
        for name in contestants
    ]
    return lines
