"""Metrics of users' JWTs and of the key set that verifies them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from app.callers.user_jwt import VERIFIED, JwtRefusal
from app.observability.metrics.labels import OTHER


class UserJwtMetrics:
    """`UserJwtCounters` in Prometheus. Each outcome has a series from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        jwts = Counter(
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
        self._jwts = {outcome: jwts.labels(outcome) for outcome in (VERIFIED, *JwtRefusal, OTHER)}
        self._downloads = {outcome: downloads.labels(outcome) for outcome in ("success", "failure")}

    def user_jwt(self, outcome: str) -> None:
        self._jwts.get(outcome, self._jwts[OTHER]).inc()

    def key_set_download(self, outcome: str) -> None:
        self._downloads[outcome].inc()
