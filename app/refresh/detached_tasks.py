"""Detached tasks: they go on when their callers leave, and a shutdown waits for them."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")
DRAIN_SECONDS: Final = 15.0


class DetachedTasks:
    """Tasks in progress. An error of a task whose caller has left is dropped."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin the work in a task of its own."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Begin the work and wait for it; a cancellation of this call does not cancel it."""
        return await asyncio.shield(self.start(work))

    async def close(self) -> int:
        """Wait some seconds for the tasks, then cancel the late ones; return how many were late."""
        if not self._tasks:
            return 0
        _, late = await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        return len(late)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()
