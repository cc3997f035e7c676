"""Instrumentation: connect metrics and traces to the objects that they observe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry

from app.callers.service_key_directory import ServiceKeyDirectory
from app.composition.encryption import Encryption
from app.composition.tracing import load_tracing
from app.config.settings import Settings, metrics_folder
from app.observability.metrics.registry import Exposition, VaultMetrics
from app.observability.metrics.store import BackgroundCensus, RowMetrics
from app.observability.readiness import Readiness
from app.observability.unhandled import log_unexpected_end
from app.stores.instrumented_repository import InstrumentedRepository
from app.tokens.cipher import TokenCipher
from app.tokens.repository import TokenRepository

if TYPE_CHECKING:  # the one needs Unix, the other an extra
    from app.observability.metrics.worker_files import WorkerFolder
    from app.observability.tracing import Tracing


_UPDATE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """Metrics and traces of this process, each `None` if it is off. `workers` is the folder that workers share."""

    metrics: VaultMetrics | None
    workers: WorkerFolder | None
    tracing: Tracing | None

    def instrument(self, repository: TokenRepository) -> TokenRepository:
        """Return the store with each call observed."""
        if self.metrics is not None:
            repository = InstrumentedRepository(tokens=repository, observe=self.metrics.store)
        if self.tracing is not None:
            repository = InstrumentedRepository(tokens=repository, observe=self.tracing.store_call)
        return repository

    def exposition(self, update: Callable[[], None], readiness: Readiness) -> Exposition:
        """Return the text for scrapes, of all workers. A scrape runs `update` and starts the readiness checks."""

        def update_all() -> None:
            update()
            readiness.refresh()

        return Exposition(registry=self._registry, update=update_all)

    def _registry(self) -> CollectorRegistry:
        if self.workers is not None:
            return self.workers.registry()
        if self.metrics is None:
            raise RuntimeError("there are no metrics to expose")
        return self.metrics.registry


def build_instrumentation(settings: Settings, tracing: Tracing | None) -> Instrumentation:
    """Build metrics and traces; `tracing` replaces what OTEL_TRACES asks for. Raises `SettingsError`."""
    metrics = workers = None
    if settings.metrics:
        folder = metrics_folder()
        if folder is not None:  # first: another worker would remove the files of earlier metrics as a dead worker's
            from app.observability.metrics.worker_files import WorkerFolder  # noqa: PLC0415  needs Unix

            workers = WorkerFolder(folder)
        keyring = settings.keyring()
        metrics = VaultMetrics(local_versions=() if keyring is None else keyring.keys)
    if tracing is None and settings.otel_traces:
        tracing = load_tracing()
    return Instrumentation(metrics, workers, tracing)


def gauge_update(
    metrics: VaultMetrics, encryption: Encryption, service_keys: ServiceKeyDirectory
) -> Callable[[], None]:
    """Return a function that sets the gauges of current state, without blocking."""

    def update() -> None:
        metrics.requests.publish()
        metrics.wire.publish()
        metrics.refreshes.publish()
        metrics.process.publish()
        services = service_keys.alive_services()
        metrics.callers.publish(services)
        metrics.state.service_keys(len(services))
        if encryption.data_keys is not None:
            metrics.state.data_keys(len(encryption.data_keys))

    return update


@asynccontextmanager
async def updating_gauges(update: Callable[[], None]) -> AsyncIterator[None]:
    """Update every five seconds, which keeps a worker's gauges fresh while another worker answers the scrapes."""

    async def update_forever() -> None:
        while True:
            update()
            await asyncio.sleep(_UPDATE_SECONDS)

    async with _in_background(update_forever()):
        yield


@asynccontextmanager
async def counting_rows(
    settings: Settings, rows: RowMetrics, tokens: TokenRepository, cipher: TokenCipher
) -> AsyncIterator[None]:
    """Count the rows every METRICS_CENSUS_SECONDS, unless that is 0."""
    rows.counted_every(settings.metrics_census_seconds)
    rows.legacy_formats(allowed=settings.allow_legacy_formats)
    if settings.metrics_census_seconds == 0:
        yield
        return
    census = BackgroundCensus(
        tokens=tokens,
        primary_scheme=lambda: cipher.primary_scheme,
        rows=rows,
        interval_seconds=settings.metrics_census_seconds,
    )
    async with _in_background(census.run()):
        yield


@asynccontextmanager
async def _in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    task = asyncio.create_task(work)
    task.add_done_callback(log_unexpected_end)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
