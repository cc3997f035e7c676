"""What the token store takes and how it fails, as metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from prometheus_client import Counter, Histogram

from app.errors import StoreError
from app.observability.metrics.labels import STORE_ERRORS, one_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from prometheus_client import CollectorRegistry

T = TypeVar("T")
_SECONDS: Final = (0.001, 0.01, 0.1, 1.0)


class StoreMetrics:
    """`StoreWatch` that times each call and counts its `StoreError`s by code."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "token_vault_store_operation_duration_seconds",
            "Time that one call to the token store took.",
            ["operation"],
            registry=registry,
            buckets=_SECONDS,
        )
        self._errors = Counter(
            "token_vault_store_errors",
            "Calls to the token store that failed, by operation and the error's code.",
            ["operation", "code"],
            registry=registry,
        )
        self._timed: dict[str, Histogram] = {}

    async def __call__(self, operation: str, call: Awaitable[T]) -> T:
        timed = self._timed.get(operation)
        if timed is None:
            timed = self._timed[operation] = self._seconds.labels(operation)
            self._errors.labels(operation, STORE_ERRORS[0])  # so that the first failure is an increase
        began = time.perf_counter()
        try:
            return await call
        except StoreError as error:
            self._errors.labels(operation, one_of(STORE_ERRORS, error.code)).inc()
            raise
        finally:
            timed.observe(time.perf_counter() - began)
