"""What the audit trail keeps, and what it cannot keep, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter

from app.observability.metrics.labels import OTHER, one_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

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
