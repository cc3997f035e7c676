"""Who watches the vault at work: metrics and traces, as the settings ask for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry

from app.callers.key_directory import ServiceKeyDirectory
from app.composition import Encryption, load_tracing
from app.config.settings import Settings, metrics_folder
from app.observability.metrics.exposition import Exposition
from app.observability.metrics.registry import VaultMetrics
from app.observability.metrics.store import BackgroundCensus, RowMetrics
from app.observability.readiness import Readiness
from app.stores.instrumentation import InstrumentedRepository
from app.tokens.cipher import TokenCipher
from app.tokens.repository import TokenRepository

if TYPE_CHECKING:
    from app.observability.metrics.workers import WorkerFolder
    from app.observability.tracing import Tracing


_LOOK_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Instrumentation:
    """The watchers; each is `None` where it is switched off."""

    metrics: VaultMetrics | None
    workers: WorkerFolder | None
    tracing: Tracing | None

    def over(self, repository: TokenRepository) -> TokenRepository:
        """Return the store under the eyes of all of them."""
        if self.metrics is not None:
            repository = InstrumentedRepository(tokens=repository, observe=self.metrics.store)
        if self.tracing is not None:
            repository = InstrumentedRepository(tokens=repository, observe=self.tracing.store_call)
        return repository

    def exposition(self, look: Callable[[], None], readiness: Readiness) -> Exposition:
        """Return what a scrape reads: of all workers where there are several. It also has readiness checked again."""

        def look_at_all() -> None:
            look()
            readiness.refresh()

        return Exposition(registry=self._registry, look=look_at_all)

    def _registry(self) -> CollectorRegistry:
        if self.workers is not None:
            return self.workers.registry()
        if self.metrics is None:
            raise RuntimeError("there are no metrics to expose")
        return self.metrics.registry


def build_instrumentation(settings: Settings, tracing: Tracing | None) -> Instrumentation:
    """Build the watchers; `tracing` takes the place of what OTEL_TRACES asks for. Raises `SettingsError`."""
    built = workers = None
    if settings.metrics:
        folder = metrics_folder()
        if folder is not None:  # before the first metric, which the other workers would take for a dead one's
            from app.observability.metrics.workers import WorkerFolder  # noqa: PLC0415  needs Unix

            workers = WorkerFolder(folder)
        keyring = settings.keyring()
        built = VaultMetrics(local_versions=() if keyring is None else keyring.keys)
    if tracing is None and settings.otel_traces:
        tracing = load_tracing()
    return Instrumentation(built, workers, tracing)


def gauge_updater(
    measured: VaultMetrics, encryption: Encryption, service_keys: ServiceKeyDirectory
) -> Callable[[], None]:
    """Return what brings the gauges up to date that nobody tells of a change; it waits for nothing."""

    def look() -> None:
        measured.requests.publish()
        measured.wire.publish()
        measured.state.service_keys(len(service_keys.alive_services()))
        if encryption.data_keys is not None:
            measured.state.data_keys(len(encryption.data_keys))

    return look


@asynccontextmanager
async def periodic_updates(look: Callable[[], None]) -> AsyncIterator[None]:
    """Look now and then, so that a worker's gauges are fresh though another one answers the scrapes."""

    async def again_and_again() -> None:
        while True:
            look()
            await asyncio.sleep(_LOOK_SECONDS)

    async with _in_background(again_and_again()):
        yield


@asynccontextmanager
async def row_census(
    settings: Settings, rows: RowMetrics, tokens: TokenRepository, cipher: TokenCipher
) -> AsyncIterator[None]:
    """Count the rows now and then, unless METRICS_CENSUS_SECONDS is 0."""
    rows.counted_every(settings.metrics_census_seconds)
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
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
