"""Metrics of users' JWTs and of the key set that verifies them."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter

from app.callers.user_jwt_refusals import VERIFIED, JwtRefusal
from app.observability.metrics.labels import one_of

_OUTCOMES: Final = frozenset({VERIFIED, *JwtRefusal})


class UserJwtMetrics:
    """`UserJwtCounters` in Prometheus. Outcomes with an alert have a series from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jwts = Counter(
            "token_vault_user_jwts",
            "Users' JWTs of calls on behalf of a user, by outcome: verified, or the reason of the refusal.",
            ["outcome"],
            registry=registry,
        )
        downloads = Counter(
            "token_vault_user_jwt_key_downloads",
            "Downloads of the key set at USER_JWT_JWKS_URL.",
            ["outcome"],
            registry=registry,
        )
        self._verified = self._jwts.labels(VERIFIED)
        self._jwts.labels(JwtRefusal.OTHER_USER)
        self._downloads = {outcome: downloads.labels(outcome) for outcome in ("success", "failure")}

    def user_jwt(self, outcome: str) -> None:
        counter = self._verified if outcome == VERIFIED else self._jwts.labels(one_of(_OUTCOMES, outcome))
        counter.inc()

    def key_set_download(self, outcome: str) -> None:
        self._downloads[outcome].inc()
