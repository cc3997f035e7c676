"""In-memory counters of encryption, the audit trail and users' JWTs, used without Prometheus."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class InMemoryCounters:
    """`EncryptionCounters` in memory. A key is a name and its labels, joined by dots."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)
    breaker: str = "closed"
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def kms_request(self, operation: str, outcome: str, seconds: float) -> None:
        with self._lock:
            self.counts[f"kms_requests.{operation}.{outcome}"] += 1
            self.seconds[f"kms_request_seconds.{operation}"] += seconds  # type: ignore[assignment]  # a sum, in seconds

    def data_key_lookup(self, purpose: str, *, hit: bool) -> None:
        with self._lock:
            self.counts[f"data_key_lookups.{purpose}.{'hit' if hit else 'miss'}"] += 1

    def breaker_state(self, state: str) -> None:
        with self._lock:
            self.breaker = state
            self.counts[f"breaker_changes.{state}"] += 1

    def fallback_write(self) -> None:
        with self._lock:
            self.counts["fallback_writes"] += 1

    def decryption_failure(self, reason: str) -> None:
        with self._lock:
            self.counts[f"decryption_failures.{reason}"] += 1


@dataclass(slots=True)
class InMemoryAuditCounters:
    """`AuditCounters` in memory. A key is a name and its labels, joined by dots."""

    counts: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def audit_events(self, count: int) -> None:
        with self._lock:
            self.counts["events"] += count

    def audit_failure(self, reason: str) -> None:
        with self._lock:
            self.counts[f"failures.{reason}"] += 1

    def audit_omitted(self) -> None:
        with self._lock:
            self.counts["omitted"] += 1


@dataclass(slots=True)
class InMemoryUserJwtCounters:
    """`UserJwtCounters` in memory, for the tasks of one event loop. A key is a name and its labels, joined by dots."""

    counts: Counter[str] = field(default_factory=Counter)

    def user_jwt(self, outcome: str) -> None:
        self.counts[f"user_jwts.{outcome}"] += 1

    def key_set_download(self, outcome: str) -> None:
        self.counts[f"key_set_downloads.{outcome}"] += 1
