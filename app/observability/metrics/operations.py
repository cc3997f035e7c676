"""Metrics of operations on tokens and of background sweeps."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter

from app.errors import VaultError
from app.observability.metrics.labels import NONE, OTHER, OUTCOMES, PROVIDER_OUTCOMES, PROVIDERS
from app.rewrap.report import SweepReport
from app.tokens.events import Operation, TokenEvent


class OperationMetrics:
    """Counts token operations in Prometheus; implements `TokenObserver`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._operations = Counter(
            "token_vault_token_operations",
            "Operations on tokens. A provider is one of PulsePlan's, `other`, or `none` if it does not matter.",
            ["operation", "provider", "outcome"],
            registry=registry,
        )
        self._counters: dict[tuple[str, str, str], Counter] = {}
        self._by_kind = Counter(
            "token_vault_operations_by_kind",
            "Operations on tokens on behalf of a `user`, whose JWT came with the call, and those without (`none`).",
            ["operation", "on_behalf_of"],
            registry=registry,
        )
        self._kinds: dict[tuple[Operation, str], Counter] = {}

    def record(self, event: TokenEvent) -> None:
        self._count(event, 1)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        alike: dict[tuple[object, ...], list[TokenEvent]] = {}
        for event in events:
            alike.setdefault((event.operation, event.token_id and event.token_id.provider, event.outcome), []).append(
                event
            )
        for some in alike.values():
            self._count(some[0], len(some))

    def _count(self, event: TokenEvent, count: int) -> None:
        kind = NONE if event.caller.on_behalf_of is None else "user"
        by_kind = self._kinds.get((event.operation, kind))
        if by_kind is None:
            by_kind = self._kinds[event.operation, kind] = self._by_kind.labels(event.operation.value, kind)
        by_kind.inc(count)
        provider = NONE if event.token_id is None else event.token_id.provider
        outcome = event.outcome if event.outcome in OUTCOMES else OTHER
        if outcome not in PROVIDER_OUTCOMES:
            provider = NONE
        elif provider not in PROVIDERS and event.token_id is not None:
            provider = OTHER
        counter = self._counters.get((event.operation, provider, outcome))
        if counter is None:
            counter = self._operations.labels(event.operation.value, provider, outcome)
            self._counters[event.operation, provider, outcome] = counter
        counter.inc(count)


class SweepMetrics:
    """`SweepObserver` of sweeps that run inside of the service, one after the other."""

    def __init__(self, registry: CollectorRegistry) -> None:
        rows = Counter(
            "token_vault_sweep_rows",
            "Rows that the service's sweeps rewrapped (label `moved`), found changed by others, or could not read.",
            ["outcome"],
            registry=registry,
        )
        self._rewrapped, self._overtaken, self._unreadable = map(rows.labels, ("moved", "overtaken", "unreadable"))
        self._report: SweepReport | None = None
        self._seen = (0, 0)

    def progressed(self, report: SweepReport) -> None:
        """Count the increase since the last call: the figures of a report only grow. Each sweep has its own report."""
        if report is not self._report:
            self._report, self._seen = report, (0, 0)
        self._rewrapped.inc(report.rewrapped - self._seen[0])
        self._overtaken.inc(report.overtaken - self._seen[1])
        self._seen = (report.rewrapped, report.overtaken)

    def unreadable(self, row_id: str, error: VaultError) -> None:  # noqa: ARG002  neither is for a label
        self._unreadable.inc()

    def waiting(self, error: VaultError, seconds: float) -> None: ...
