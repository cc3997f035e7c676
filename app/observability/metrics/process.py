"""Metrics of this process: use of the system, build, readiness, keys in memory, audit trail."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge

from app.observability.metrics.labels import OTHER, one_of
from app.observability.readiness import CheckState

AUDIT_FAILURE_REASONS: Final = ("slow", "full", "closed", "ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", OTHER)
_STATES: Final = {"up": 1.0, "degraded": 0.5, "down": 0.0}


class ProcessMetrics:
    """The metrics that prometheus-client's `ProcessCollector` has for one process, here for all workers.

    Memory and files need Linux; elsewhere they stay 0.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._cpu = Counter(
            "process_cpu_seconds", "Processor time of all workers, also of ended ones.", registry=registry
        )
        self._cpu_seconds = 0.0
        self._memory = Gauge(
            "process_resident_memory_bytes",
            "Memory of all workers; what they share counts for each.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._open_files = Gauge(
            "process_open_fds",
            "Open files and connections of the worker that has most.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._maximum_files = Gauge(
            "process_max_fds",
            "Open files and connections that each worker may have.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self._started = Gauge(
            "process_start_time_seconds",
            "When the oldest worker started, in seconds since 1970.",
            registry=registry,
            multiprocess_mode="livemin",
        )

    def publish(self) -> None:
        used = time.process_time()
        self._cpu.inc(used - self._cpu_seconds)
        self._cpu_seconds = used
        self._maximum_files.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if sys.platform != "linux":
            return
        with suppress(OSError):  # without a free file descriptor the last values stay
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self._memory.set(pages * resource.getpagesize())
            self._open_files.set(len(os.listdir("/proc/self/fd")))  # noqa: PTH208  a list of names is cheaper
            self._started.set(_started_at())


def _started_at() -> float:
    """Return the start of this process in seconds since 1970; proc(5): `starttime` is the 22nd field."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


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
