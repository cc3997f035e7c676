"""Metrics of the token store: its calls, its failures, and its rows by encryption scheme."""

from __future__ import annotations

import asyncio
import collections
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from app.errors import StoreError, VaultError
from app.observability.metrics.labels import NONE, OTHER, STORE_ERRORS, one_of
from app.tokens.census import Census
from app.tokens.repository import TokenRepository

T = TypeVar("T")
_SECONDS: Final = (0.001, 0.01, 0.1, 1.0)
_log = structlog.get_logger()


class StoreMetrics:
    """`StoreObserver` that times each call and counts `StoreError`s by code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "token_vault_store_operation_duration_seconds",
            "Time of one call to the token store.",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._errors = Counter(
            "token_vault_store_errors",
            "Failed calls to the token store, by operation and error code.",
            ["operation", "code"],
            registry=registry,
        )
        self._histograms: dict[str, Histogram] = {}

    async def __call__(self, operation: str, call: Awaitable[T]) -> T:
        histogram = self._histograms.get(operation)
        if histogram is None:
            histogram = self._histograms[operation] = self._seconds.labels(operation)
            self._errors.labels(operation, STORE_ERRORS[0])  # so an alert sees the first failure as an increase
        began = time.perf_counter()
        try:
            return await call
        except StoreError as error:
            self._errors.labels(operation, one_of(STORE_ERRORS, error.code)).inc()
            raise
        finally:
            histogram.observe(time.perf_counter() - began)


class RowMetrics:
    """Gauges of the last census. Each configured master key has a label; all KMS keys share one, so no ARN shows."""

    def __init__(self, registry: CollectorRegistry, *, local_versions: Iterable[int] = ()) -> None:
        self._rows = Gauge(
            "token_vault_rows",
            "Rows by encryption scheme at the last census; `none` if the vault did not write them.",
            ["scheme"],
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._due = Gauge(
            "token_vault_rows_due",
            "Rows that are not under the primary key, at the last census that knew that key.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._legacy = Gauge(
            "token_vault_rows_legacy",
            "Rows in PulsePlan's formats, at the last census.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._legacy_allowed = Gauge(
            "token_vault_legacy_formats_allowed",
            "1 if PulsePlan's formats are read.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._taken = Gauge(
            "token_vault_census_timestamp_seconds",
            "When the rows were last counted.",
            registry=registry,
            multiprocess_mode="livemostrecent",
        )
        self._interval = Gauge(
            "token_vault_census_interval_seconds",
            "Interval between censuses; 0 if rows are not counted.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._local = frozenset(f"local:v{version}" for version in local_versions)
        self._labels = (*sorted(self._local), "kms", NONE, OTHER)

    def show(self, census: Census) -> None:
        counts: collections.Counter[str] = collections.Counter()
        for line in census.lines:
            counts[self._label(line.scheme)] += line.rows
        for label in self._labels:  # also labels without rows now: a gauge keeps its last value
            self._rows.labels(label).set(counts[label])
        if census.due is not None:
            self._due.set(census.due)
        self._legacy.set(census.legacy)
        self._taken.set(time.time())

    def counted_every(self, seconds: float) -> None:
        self._interval.set(seconds)

    def legacy_formats(self, *, allowed: bool) -> None:
        self._legacy_allowed.set(allowed)

    def _label(self, scheme: str | None) -> str:
        if scheme is None:
            return NONE
        if scheme.startswith("kms:"):
            return "kms"
        return scheme if scheme in self._local else OTHER


class BackgroundCensus:
    """Counts the rows every `interval_seconds`, give or take a fifth. A failed census is not repeated before then.

    The first one comes after 5 to 15 % of the interval, which spreads replicas that start together.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        primary_scheme: Callable[[], str | None],
        rows: RowMetrics,
        interval_seconds: float,
    ) -> None:
        self._tokens = tokens
        self._primary_scheme = primary_scheme
        self._rows = rows
        self._interval_seconds = interval_seconds

    async def run(self) -> None:
        """Count until cancelled."""
        await asyncio.sleep(self._interval_seconds * random.uniform(0.05, 0.15))  # noqa: S311  spreads replicas out
        while True:
            try:
                lines = await self._tokens.census()
                self._rows.show(Census.of(lines, primary_scheme=self._primary_scheme()))
            except VaultError as error:
                _log.warning("census_failed", code=error.code, reason=error.detail)
            except Exception as error:  # noqa: BLE001  the next census must still come
                _log.error("census_failed", exc_info=error)
            await asyncio.sleep(self._interval_seconds * random.uniform(0.8, 1.2))  # noqa: S311  spreads replicas out
