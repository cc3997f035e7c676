"""The text that Prometheus scrapes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


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
        return generate_latest(self._registry())
