"""The metrics as Prometheus reads them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Exposition:
    """Writes the metrics down, in a thread: no request waits for it, and scrapes at the same time share one writing.

    `look` is called before, on the event loop, to bring up to date what is only looked at; it must not wait.
    """

    def __init__(self, *, registry: Callable[[], CollectorRegistry], look: Callable[[], None]) -> None:
        self._registry = registry
        self._look = look
        self._writing: asyncio.Task[bytes] | None = None

    async def text(self) -> bytes:
        if self._writing is None or self._writing.done():
            self._look()
            self._writing = asyncio.create_task(asyncio.to_thread(self._write))
        return await asyncio.shield(self._writing)

    def _write(self) -> bytes:
        return generate_latest(self._registry())
