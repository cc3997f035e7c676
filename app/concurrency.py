"""Tasks side by side, none of which goes on behind its caller's back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Iterable
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Tasks:
    """Tasks side by side. When the block ends all have ended too, and the first error of any of them is raised."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            for task in self._running:
                task.cancel()
        while self._running:
            await asyncio.wait(self._running)
        if error is None:
            self.raise_first()

    def start(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def raise_first(self) -> None:
        if self._error is not None:
            raise self._error

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            error = task.exception()  # asked of each, else asyncio logs it
            self._error = self._error or error


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then return their results or raise the first error: nothing goes on behind the caller's back."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
