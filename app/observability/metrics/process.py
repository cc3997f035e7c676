"""Metrics of this process: readiness, keys in memory and the audit trail."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.observability.metrics.labels import OTHER, one_of
from app.observability.readiness import CheckState

# --- How this process is, as gauges.

_STATES: Final = {"up": 1.0, "degraded": 0.5, "down": 0.0}


class StateMetrics:
    """Gauges of one process; where there are several workers, of the one that was looked at last or of all."""

    def __init__(self, registry: CollectorRegistry) -> None:
        build = Gauge(
            "token_vault_build_info",
            "Always 1; the version that runs.",
            ["version", "python"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(version("pulseplan-token-vault"), platform.python_version()).set(1)
        self._ready = Gauge(
            "token_vault_ready",
            "1 where /readyz answers with 200, 0 where it answers with 503.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._checks = Gauge(
            "token_vault_check_state",
            "What /readyz says of each check: 1 up, 0.5 degraded, 0 down.",
            ["check"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._service_keys = Gauge(
            "token_vault_service_keys_alive",
            "Service keys that are configured and have not expired.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._data_keys = Gauge(
            "token_vault_data_keys",
            "Data keys in the cache, for sealing and for opening.",
            registry=registry,
            multiprocess_mode="livesum",
        )

    def readiness(self, states: Mapping[str, CheckState]) -> None:
        self._ready.set("down" not in states.values())
        for check, state in states.items():
            self._checks.labels(check).set(_STATES[state])

    def service_keys(self, alive: int) -> None:
        self._service_keys.set(alive)

    def data_keys(self, kept: int) -> None:
        self._data_keys.set(kept)


# --- What the audit trail keeps, and what it cannot keep, as metrics.

REASONS: Final = ("slow", "full", "closed", "ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", OTHER)


class AuditMetrics:
    """The audit trail's counters, as `app/audit` names them; called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter("token_vault_audit_events", "Events that the audit trail kept.", registry=registry)
        failures = Counter(
            "token_vault_audit_failures",
            "Writes to the audit trail that failed, by reason: `slow`, `full` queue, or the errno's name.",
            ["reason"],
            registry=registry,
        )
        self._failures = {reason: failures.labels(reason) for reason in REASONS}
        self._omitted = Counter(
            "token_vault_audit_omitted",
            "Refusals that were left out of the trail because one caller had too many at once.",
            registry=registry,
        )

    def audit_events(self, count: int) -> None:
        self._events.inc(count)

    def audit_failure(self, reason: str) -> None:
        self._failures[one_of(REASONS, reason)].inc()

    def audit_omitted(self) -> None:
        self._omitted.inc()
