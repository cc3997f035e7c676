"""Metrics of this process: build, readiness, keys in memory, audit trail."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.observability.metrics.labels import OTHER, one_of
from app.observability.readiness import CheckState

AUDIT_FAILURE_REASONS: Final = ("slow", "full", "closed", "ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", OTHER)
_STATES: Final = {"up": 1.0, "degraded": 0.5, "down": 0.0}


class StateMetrics:
    """Gauges of the process's state. With several workers, most show the worker that set them last."""

    def __init__(self, registry: CollectorRegistry) -> None:
        build = Gauge(
            "token_vault_build_info",
            "Always 1; the running version.",
            ["version", "python"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(version("pulseplan-token-vault"), platform.python_version()).set(1)
        self._ready = Gauge(
            "token_vault_ready",
            "1 if /readyz answers with 200, 0 if it answers with 503.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._checks = Gauge(
            "token_vault_check_state",
            "State of each check of /readyz: 1 up, 0.5 degraded, 0 down.",
            ["check"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._service_keys = Gauge(
            "token_vault_service_keys_alive",
            "Configured service keys that have not expired.",
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


class AuditMetrics:
    """`AuditCounters` as metrics; called from any thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter("token_vault_audit_events", "Events that the audit trail kept.", registry=registry)
        failures = Counter(
            "token_vault_audit_failures",
            "Failed writes to the audit trail, by reason: `slow`, `full` queue, or the name of the errno.",
            ["reason"],
            registry=registry,
        )
        self._failures = {reason: failures.labels(reason) for reason in AUDIT_FAILURE_REASONS}
        self._omitted = Counter(
            "token_vault_audit_omitted",
            "Refusals left out of the trail because one caller had too many at once.",
            registry=registry,
        )

    def audit_events(self, count: int) -> None:
        self._events.inc(count)

    def audit_failure(self, reason: str) -> None:
        self._failures[one_of(AUDIT_FAILURE_REASONS, reason)].inc()

    def audit_omitted(self) -> None:
        self._omitted.inc()
