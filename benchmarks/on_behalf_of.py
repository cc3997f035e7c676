"""The processor time of a reveal with a user's JWT, beside one without; the issuer's key set is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from app.callers.user_jwt import CACHE_SIZE
from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Plan
from benchmarks.requests import new_user_ids
from benchmarks.servers import Server
from benchmarks.table import Line, Target
from tests.support.security.user_jwts import new_signing_key
from tests.support.stack.jwks import jwks_endpoint

_TOKENS: Final = 500
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_UTIME: Final = 11  # of the fields after the command in /proc/PID/stat


@dataclass(frozen=True, slots=True)
class _Contestant:
    name: str
    requests: tuple[bytes, ...]
    target: Target | None = None


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    key = new_signing_key("ES256")
    # more JWTs than the vault remembers, in turn, so each is verified anew
    unknown = [(user_id, key.jwt(user_id)) for user_id in user_ids * (CACHE_SIZE // _TOKENS + 2)]
    contestants = (
        _Contestant("no JWT", tuple(bench.requests.reveal(user_id) for user_id in user_ids)),
        _Contestant(
            "JWT, seen before",
            tuple(bench.requests.reveal_for(user_id, key.jwt(user_id)) for user_id in user_ids),
            Target(at_most=60.0),
        ),
        _Contestant("JWT (ES256), new", tuple(bench.requests.reveal_for(user_id, jwt) for user_id, jwt in unknown)),
    )
    with (
        jwks_endpoint(key) as endpoint,
        bench.servers.vault("on-behalf-of", endpoint.environment()) as vault,
    ):
        bench.stored(vault, user_ids)
        rounds = [[_microseconds(bench, vault, one) for one in contestants] for _ in range(bench.rounds + 1)][1:]
    without = [one[0] for one in rounds]
    return [
        Line("reveal, SQLite, no JWT, processor time", median(without), "us"),
        *(
            Line(
                f"more for a {one.name}",
                median(figures[number] - figures[0] for figures in rounds),
                "us",
                median(figures[number] / figures[0] for figures in rounds),
                "no JWT",
                one.target,
            )
            for number, one in enumerate(contestants)
            if number
        ),
    ]


def _microseconds(bench: Bench, vault: Server, contestant: _Contestant) -> float:
    """Return the processor time of the server for one request."""
    plan = Plan(
        port=vault.port,
        requests=contestant.requests,
        connections=CONNECTIONS,
        seconds=bench.load_seconds,
        over_and_over=True,
    )
    before = _processor_seconds(vault.pid)
    load = bench.drive(plan)
    return (_processor_seconds(vault.pid) - before) / len(load.latencies) * 1e6


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_UTIME + 1])) / _TICKS_PER_SECOND
