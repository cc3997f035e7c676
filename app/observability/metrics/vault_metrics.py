"""Every metric of one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, disable_created_metrics

from app.observability.metrics.audit import AuditMetrics
from app.observability.metrics.encryption import PrometheusCounters
from app.observability.metrics.operations import OperationMetrics, SweepMetrics
from app.observability.metrics.refusals import RefusalMetrics
from app.observability.metrics.requests import RequestMetrics
from app.observability.metrics.rows import RowMetrics
from app.observability.metrics.state import StateMetrics
from app.observability.metrics.store import StoreMetrics
from app.observability.metrics.wire import WireMetrics

if TYPE_CHECKING:
    from collections.abc import Iterable


class VaultMetrics:
    """The metrics by whom they are about. Each is handed to whoever has something to count, and to nobody else."""

    def __init__(self, *, local_versions: Iterable[int] = ()) -> None:
        # they would be a second series for each counter, which nothing here needs
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        self.registry = registry = CollectorRegistry()
        self.refusals = RefusalMetrics(registry)
        self.requests = RequestMetrics(registry, refusals=self.refusals)
        self.wire = WireMetrics(registry, refusals=self.refusals)
        self.operations = OperationMetrics(registry)
        self.sweeps = SweepMetrics(registry)
        self.encryption = PrometheusCounters(registry)
        self.store = StoreMetrics(registry)
        self.rows = RowMetrics(registry, local_versions=local_versions)
        self.state = StateMetrics(registry)
        self.audit = AuditMetrics(registry)
