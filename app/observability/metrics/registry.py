"""Every metric of one process, and the text that Prometheus scrapes."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable, Iterable
from typing import Final, final

from prometheus_client import CollectorRegistry, disable_created_metrics, generate_latest

from app.observability.metrics.callers import CallerMetrics
from app.observability.metrics.encryption import EncryptionMetrics
from app.observability.metrics.operations import OperationMetrics, SweepMetrics
from app.observability.metrics.process import AuditMetrics, ProcessMetrics, StateMetrics
from app.observability.metrics.refresh import RefreshMetrics
from app.observability.metrics.requests import RefusalMetrics, RequestMetrics, WireMetrics
from app.observability.metrics.store import RowMetrics, StoreMetrics
from app.observability.metrics.user_jwts import UserJwtMetrics

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UNFINISHED_SECONDS: Final = 2.0
_PAUSE_SECONDS: Final = 0.01


@final
class VaultMetrics:
    """All metrics, grouped by subject. Each group is passed to the object that it observes."""

    def __init__(self, *, local_versions: Iterable[int] = ()) -> None:
        # a second series for each counter, which nothing here needs
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        self.registry = registry = CollectorRegistry()
        self.refusals = RefusalMetrics(registry)
        self.requests = RequestMetrics(registry, refusals=self.refusals)
        self.wire = WireMetrics(registry, refusals=self.refusals)
        self.operations = OperationMetrics(registry)
        self.callers = CallerMetrics(registry)
        self.user_jwts = UserJwtMetrics(registry)
        self.sweeps = SweepMetrics(registry)
        self.refreshes = RefreshMetrics(registry)
        self.encryption = EncryptionMetrics(registry)
        self.store = StoreMetrics(registry)
        self.rows = RowMetrics(registry, local_versions=local_versions)
        self.process = ProcessMetrics(registry)
        self.state = StateMetrics(registry)
        self.audit = AuditMetrics(registry)


class Exposition:
    """Renders the metrics in a thread, so no request waits. Concurrent scrapes share one rendering.

    `update` runs before, on the event loop, and sets gauges of current state; it must not block.
    """

    def __init__(self, *, registry: Callable[[], CollectorRegistry], update: Callable[[], None]) -> None:
        self._registry = registry
        self._update = update
        self._rendering: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        if self._rendering is None or self._rendering.done():
            self._update()
            self._rendering = asyncio.create_task(asyncio.to_thread(self._render))
        return await asyncio.shield(self._rendering)

    def _render(self) -> bytes:
        give_up_at = time.monotonic() + _UNFINISHED_SECONDS
        while True:
            try:
                return generate_latest(self._registry())
            except struct.error:  # a worker that starts has created a file, and has not filled it yet
                if time.monotonic() > give_up_at:
                    raise
                time.sleep(_PAUSE_SECONDS)
