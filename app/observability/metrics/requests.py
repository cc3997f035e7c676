"""Metrics of HTTP requests, refusals and connections."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.observability.metrics.labels import METHODS, UNMATCHED, one_of

# --- What the vault turned away on purpose, as metrics.

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


# --- HTTP requests as metrics: by route template, never by path.

# each bound is a series for each route, so there are few
_SECONDS = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 2.5)
_API = "/v1/"


class RequestMetrics:
    """ReportedRows of each request at its beginning and end, on the event loop.

    Latencies are kept for the API's routes alone: a probe's would cost as many series and say nothing.
    """

    def __init__(self, registry: CollectorRegistry, *, refusals: RefusalMetrics) -> None:
        self.refusals = refusals
        self._requests = Counter(
            "token_vault_requests",
            "Requests by route template, method and status; 499 where the caller left first.",
            ["route", "method", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "token_vault_request_duration_seconds",
            "Time to answer a request to the API.",
            ["route", "method"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._in_flight_gauge = Gauge(
            "token_vault_requests_in_flight",
            "Requests that are being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._counted: dict[tuple[str | None, str, int], Counter] = {}
        self._timed: dict[tuple[str, str], Histogram] = {}
        self._in_flight = 0  # written to the gauge when somebody looks

    def began(self) -> None:
        self._in_flight += 1

    def ended(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request; `route` is its template, `None` where no route matched."""
        self._in_flight -= 1
        method = one_of(METHODS, method)
        counter = self._counted.get((route, method, status))
        if counter is None:
            counter = self._requests.labels(route or UNMATCHED, method, status)
            self._counted[route, method, status] = counter
        counter.inc()
        if route is not None and route.startswith(_API):
            histogram = self._timed.get((route, method))
            if histogram is None:
                histogram = self._timed[route, method] = self._seconds.labels(route, method)
            histogram.observe(seconds)

    def publish(self) -> None:
        self._in_flight_gauge.set(self._in_flight)


# --- Connections, and what is refused on them before there is a request, as metrics.


class WireMetrics:
    """Called on the event loop, so each method must be quick."""

    def __init__(self, registry: CollectorRegistry, *, refusals: RefusalMetrics) -> None:
        self._refusals = refusals
        self._gauge = Gauge(
            "token_vault_connections",
            "Open connections, without those in their TLS handshake.",
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
