"""Metrics of encryption: KMS requests, data keys, breaker, failures."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.observability.metrics.labels import (
    DECRYPTION_FAILURES,
    KMS_OPERATIONS,
    KMS_OUTCOMES,
    KMS_THROTTLES,
    one_of,
)

_SECONDS: Final = (0.01, 0.05, 0.25, 1.0, 2.5)
_BREAKER: Final = {"closed": 0, "half_open": 1, "open": 2}


class EncryptionMetrics:
    """`EncryptionCounters` as metrics; called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kms_requests = Counter(
            "token_vault_kms_requests",
            "Requests to KMS by operation and outcome: `success`, or the code that KMS or the network gave.",
            ["operation", "outcome"],
            registry=registry,
        )
        self._kms_seconds = Histogram(
            "token_vault_kms_request_duration_seconds",
            "Time of one request to KMS.",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._throttles = Counter("token_vault_kms_throttles", "Requests that KMS throttled.", registry=registry)
        lookups = Counter(
            "token_vault_data_key_lookups",
            "Look-ups in the data-key cache, to seal or to open; a miss requests KMS.",
            ["purpose", "result"],
            registry=registry,
        )
        self._lookups = {
            (purpose, hit): lookups.labels(purpose, "hit" if hit else "miss")
            for purpose in ("seal", "open")
            for hit in (True, False)
        }
        self._breaker = Gauge(
            "token_vault_kms_breaker_state",
            "Circuit breaker in front of KMS: 0 closed, 1 half open, 2 open; the worst of several workers.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._breaker.set(_BREAKER["closed"])
        changes = Counter(
            "token_vault_kms_breaker_changes", "Changes of the breaker by new state.", ["state"], registry=registry
        )
        self._breaker_changes = {state: changes.labels(state) for state in _BREAKER}
        self._fallback_writes = Counter(
            "token_vault_fallback_writes",
            "Tokens encrypted locally because KMS was unavailable.",
            registry=registry,
        )
        failures = Counter(
            "token_vault_decryption_failures",
            "Ciphertexts that could not be decrypted, by error code.",
            ["reason"],
            registry=registry,
        )
        self._failures = {reason: failures.labels(reason) for reason in (*DECRYPTION_FAILURES, "other")}

    def kms_request(self, operation: str, outcome: str, seconds: float) -> None:
        operation = one_of(KMS_OPERATIONS, operation)
        self._kms_requests.labels(operation, one_of(KMS_OUTCOMES, outcome)).inc()
        self._kms_seconds.labels(operation).observe(seconds)
        if outcome in KMS_THROTTLES:
            self._throttles.inc()

    def data_key_lookup(self, purpose: str, *, hit: bool) -> None:
        self._lookups[purpose, hit].inc()

    def breaker_state(self, state: str) -> None:
        self._breaker.set(_BREAKER[state])
        self._breaker_changes[state].inc()

    def fallback_write(self) -> None:
        self._fallback_writes.inc()

    def decryption_failure(self, reason: str) -> None:
        self._failures[one_of(DECRYPTION_FAILURES, reason)].inc()
