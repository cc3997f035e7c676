"""Every metric of one process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import final

from prometheus_client import CollectorRegistry, disable_created_metrics

from app.observability.metrics.encryption import EncryptionMetrics
from app.observability.metrics.operations import OperationMetrics, SweepMetrics
from app.observability.metrics.process import AuditMetrics, StateMetrics
from app.observability.metrics.requests import RefusalMetrics, RequestMetrics, WireMetrics
from app.observability.metrics.store import RowMetrics, StoreMetrics


@final
class VaultMetrics:
    """All metrics, grouped by subject. Each group is passed to the object that it observes."""

    def __init__(self, *, local_versions: Iterable[int] = ()) -> None:
        # a second series for each counter, which nothing here needs
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        self.registry = registry = CollectorRegistry()
        self.refusals = RefusalMetrics(registry)
        self.requests = RequestMetrics(registry, refusals=self.refusals)
        self.wire = WireMetrics(registry, refusals=self.refusals)
        self.operations = OperationMetrics(registry)
        self.sweeps = SweepMetrics(registry)
        self.encryption = EncryptionMetrics(registry)
        self.store = StoreMetrics(registry)
        self.rows = RowMetrics(registry, local_versions=local_versions)
        self.state = StateMetrics(registry)
        self.audit = AuditMetrics(registry)
