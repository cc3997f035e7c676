"""Metrics of HTTP requests, refusals and connections."""

from __future__ import annotations

from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.observability.metrics.labels import METHODS, UNMATCHED, one_of

# codes of errors that a request is answered with; the other reasons are refusals before there is a request
REFUSAL_CODES: Final = frozenset({"body_too_large", "overloaded", "rate_limited"})
REFUSAL_REASONS: Final = (*sorted(REFUSAL_CODES), "head_too_large", "shed", "too_slow", "unread", "other")
_SECONDS: Final = (0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 2.5)  # few, because each bound is a series for each route
_API: Final = ("/v1/", "/oauth/")


class RefusalMetrics:
    """Counter of refusals by limits and load shedding. Each reason has a series from the start."""

    def __init__(self, registry: CollectorRegistry) -> None:
        refused = Counter(
            "token_vault_refused",
            "Requests and connections refused to protect the vault, by reason; `overloaded` is load shedding.",
            ["reason"],
            registry=registry,
        )
        self._refused = {reason: refused.labels(reason) for reason in REFUSAL_REASONS}

    def answered(self, outcome: str | None) -> None:
        """Count a request if the code of its error is one that protects the vault."""
        if outcome in REFUSAL_CODES:
            self._refused[outcome].inc()

    def refused(self, reason: str) -> None:
        """Count a refusal before there is a request."""
        self._refused[one_of(REFUSAL_REASONS, reason)].inc()


class RequestMetrics:
    """Counters of requests by route template, never by path; called on the event loop.

    Only routes of the API have latencies: those of the probes would cost as many series and show nothing.
    """

    def __init__(self, registry: CollectorRegistry, *, refusals: RefusalMetrics) -> None:
        self.refusals = refusals
        self._requests = Counter(
            "token_vault_requests",
            "Requests by route template, method and status; 499 if the caller left first.",
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
        # `labels` takes longer than `inc`, so its results are kept
        self._counters: dict[tuple[str | None, str, int], Counter] = {}
        self._histograms: dict[tuple[str, str], Histogram] = {}
        self._in_flight = 0

    def began(self) -> None:
        self._in_flight += 1

    def ended(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request; `route` is its template, `None` if no route matched."""
        self._in_flight -= 1
        method = one_of(METHODS, method)
        counter = self._counters.get((route, method, status))
        if counter is None:
            counter = self._requests.labels(route or UNMATCHED, method, status)
            self._counters[route, method, status] = counter
        counter.inc()
        if route is not None and route.startswith(_API):
            histogram = self._histograms.get((route, method))
            if histogram is None:
                histogram = self._histograms[route, method] = self._seconds.labels(route, method)
            histogram.observe(seconds)

    def publish(self) -> None:
        """Set the gauge; before a scrape, since setting it for each request would cost more."""
        self._in_flight_gauge.set(self._in_flight)


class WireMetrics:
    """Open connections, and refusals before there is a request; called on the event loop, so it must be quick."""

    def __init__(self, registry: CollectorRegistry, *, refusals: RefusalMetrics) -> None:
        self._refusals = refusals
        self._gauge = Gauge(
            "token_vault_connections",
            "Open connections, without those in their TLS handshake.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._open = 0

    def opened(self) -> None:
        self._open += 1

    def closed(self) -> None:
        self._open -= 1

    def refused(self, reason: str) -> None:
        self._refusals.refused(reason)

    def publish(self) -> None:
        """Set the gauge; before a scrape, as `RequestMetrics.publish` does."""
        self._gauge.set(self._open)
