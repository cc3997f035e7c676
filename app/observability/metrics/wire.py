"""Connections, and what is refused on them before there is a request, as metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import Gauge

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from app.observability.metrics.refusals import RefusalMetrics


class WireMetrics:
    """`WireWatch` as metrics."""

    def __init__(self, registry: CollectorRegistry, *, refusals: RefusalMetrics) -> None:
        self._refusals = refusals
        self._gauge = Gauge(
            "token_vault_connections",
            "Connections that are open, those in their TLS handshake too.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._open = 0  # written to the gauge when somebody looks

    def opened(self) -> None:
        self._open += 1

    def closed(self) -> None:
        self._open -= 1

    def refused(self, reason: str) -> None:
        self._refusals.refused(reason)

    def publish(self) -> None:
        self._gauge.set(self._open)
