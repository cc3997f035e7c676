"""The processor time of a reveal with a user's JWT, beside one without; the issuer's key set is downloaded.

The target of 60 us holds for a JWT that the vault has seen before, because callers send each JWT many times until it
expires. The first call with a JWT costs the verification of its signature in addition, which is measured without a
target.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final

from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.load import Plan
from benchmarks.processor import processor_seconds
from benchmarks.requests import new_user_ids
from benchmarks.rounds import run_rounds
from benchmarks.servers import Server
from benchmarks.table import Line, Target
from tests.support.security.user_jwts import new_signing_key
from tests.support.stack.jwks import jwks_endpoint

_TOKENS: Final = 500
_NEW_PER_USER: Final = 14  # more than a round sends


@dataclass(frozen=True, slots=True)
class _Contestant:
    name: str
    requests: Callable[[], tuple[bytes, ...]]
    target: Target | None = None


def measure(bench: Bench) -> list[Line]:
    user_ids = new_user_ids(_TOKENS)
    key = new_signing_key("ES256")

    def with_new_jwts(times: int = 1) -> tuple[bytes, ...]:
        return tuple(bench.requests.reveal_for(user_id, key.jwt(user_id)) for user_id in user_ids * times)

    without_jwt, with_seen_jwts = tuple(map(bench.requests.reveal, user_ids)), with_new_jwts()
    contestants = (
        _Contestant("no JWT", lambda: without_jwt),
        _Contestant("JWT, seen before (signature verified earlier)", lambda: with_seen_jwts, Target(at_most=60.0)),
        _Contestant("JWT (ES256), first seen (signature verified)", lambda: with_new_jwts(_NEW_PER_USER)),
    )
    with (
        jwks_endpoint(key) as endpoint,
        bench.servers.vault("on-behalf-of", endpoint.environment()) as vault,
    ):
        bench.stored(vault, user_ids)
        bench.drive(Plan(port=vault.port, requests=with_seen_jwts, connections=CONNECTIONS, seconds=60.0))
        without, *with_jwt = run_rounds(
            [partial(_microseconds, bench, vault, one) for one in contestants], turns=bench.turns
        )
    return [
        Line("reveal, SQLite, no JWT, processor time", median(without), "us"),
        *(
            Line(
                f"more for a {one.name}",
                median(figure - other for figure, other in zip(figures, without, strict=True)),
                "us",
                median(figure / other for figure, other in zip(figures, without, strict=True)),
                "no JWT",
                one.target,
            )
            for one, figures in zip(contestants[1:], with_jwt, strict=True)
        ),
    ]


def _microseconds(bench: Bench, vault: Server, contestant: _Contestant) -> float:
    """Return the processor time of the server for one request."""
    run = bench.over_and_over(vault, contestant.requests())
    before = processor_seconds([vault.pid])
    load = run()
    return (processor_seconds([vault.pid]) - before) / len(load.latencies) * 1e6
