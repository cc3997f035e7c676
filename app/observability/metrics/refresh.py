"""Metrics of refreshes and of the providers that are asked."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.errors import ProviderMisconfigured, ProviderUnavailable, TokenInactive
from app.observability.metrics.labels import OUTCOMES, one_of
from app.tokens.events import SUCCESS

_SECONDS: Final = (0.05, 0.25, 1.0, 2.5, 5.0, 10.0)
_REASONS: Final = ("refused", "outcome_lost")
# series from the start: an alert sees an increase, not a new series
_OUTCOMES: Final = (SUCCESS, TokenInactive.code, ProviderUnavailable.code, ProviderMisconfigured.code)


class RefreshMetrics:
    """`RefreshObserver` as metrics. A provider is the name of an entry in the registry; called on the event loop."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._refreshes = Counter(
            "token_vault_refreshes",
            "Refreshes that began, by provider and outcome.",
            ["provider", "outcome"],
            registry=registry,
        )
        self._refresh_seconds = Histogram(
            "token_vault_refresh_duration_seconds",
            "Time of a refresh that began: the wait for a lease, the provider and the store.",
            ["provider"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._provider_seconds = Histogram(
            "token_vault_provider_request_duration_seconds",
            "Time of one request to a provider: refreshes, exchanges and revocations.",
            ["provider"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._takeovers = Counter(
            "token_vault_refresh_takeovers",
            "Refreshes that took the lease of one that did not end it.",
            ["provider"],
            registry=registry,
        )
        self._needs_reauth = Counter(
            "token_vault_needs_reauth",
            "Tokens whose user must sign in again: `refused` by the provider, or `outcome_lost` by the vault.",
            ["provider", "reason"],
            registry=registry,
        )
        self._unwritten_gauge = Gauge(
            "token_vault_refreshes_unwritten",
            "Answers of a provider that the store has not taken yet.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self._spool_files = Gauge(
            "token_vault_refresh_spool_files",
            "New tokens of ended processes in REFRESH_SPOOL_DIR: `waiting` for the store or a key, or `refused`.",
            ["state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._overdue = Gauge(
            "token_vault_refresh_overdue_seconds",
            "Time that the oldest due token had waited at the begin of the last background round; 0 if none was due.",
            ["provider"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._unwritten: Tally[str] = Tally()
        self._known: set[str] = set()
        self._providers: Callable[[], Iterable[str]] = tuple

    def follow(self, providers: Callable[[], Iterable[str]]) -> None:
        """Set the function that returns the names of the providers in the registry, which follows its file."""
        self._providers = providers

    def publish(self) -> None:
        """Give each provider its series; before a scrape."""
        for provider in self._providers():
            self._make_known(provider)

    def refreshed(self, provider: str, outcome: str, seconds: float) -> None:
        self._refreshes.labels(provider, one_of(OUTCOMES, outcome)).inc()
        self._refresh_seconds.labels(provider).observe(seconds)

    def taken_over(self, provider: str) -> None:
        self._takeovers.labels(provider).inc()

    def reauthentication_needed(self, provider: str, *, outcome_lost: bool) -> None:
        self._needs_reauth.labels(provider, _REASONS[outcome_lost]).inc()

    def unwritten(self, provider: str, change: int) -> None:
        self._unwritten[provider] += change
        self._unwritten_gauge.labels(provider).set(self._unwritten[provider])

    def spooled(self, *, waiting: int, refused: int) -> None:
        self._spool_files.labels("waiting").set(waiting)
        self._spool_files.labels("refused").set(refused)

    def answered(self, provider: str, seconds: float) -> None:
        self._provider_seconds.labels(provider).observe(seconds)

    def overdue(self, provider: str, seconds: float) -> None:
        self._overdue.labels(provider).set(seconds)

    def _make_known(self, provider: str) -> None:
        if provider in self._known:
            return
        self._known.add(provider)
        for outcome in _OUTCOMES:
            self._refreshes.labels(provider, outcome)
        for reason in _REASONS:
            self._needs_reauth.labels(provider, reason)
        self._takeovers.labels(provider)
        self._unwritten_gauge.labels(provider)
