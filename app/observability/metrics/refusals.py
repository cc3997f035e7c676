"""What the vault turned away on purpose, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prometheus_client import Counter

from app.observability.metrics.labels import one_of

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

# codes of errors that a request is answered with, and names for what is refused before there is a request
ANSWERED: Final = frozenset({"body_too_large", "overloaded", "rate_limited"})
REASONS: Final = (*sorted(ANSWERED), "head_too_large", "shed", "too_slow", "unread", "other")


class RefusalMetrics:
    """Counts what limits and load shedding refuse; each reason is there from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        refused = Counter(
            "token_vault_refused",
            "Requests and connections refused to protect the vault, by reason; `overloaded` is load shedding.",
            ["reason"],
            registry=registry,
        )
        self._refused = {reason: refused.labels(reason) for reason in REASONS}

    def answered(self, outcome: str | None) -> None:
        """Count the request where the error that it was answered with is one of those that protect the vault."""
        if outcome in ANSWERED:
            self._refused[outcome].inc()

    def refused(self, reason: str) -> None:
        """Count what never became a request."""
        self._refused[one_of(REASONS, reason)].inc()
