"""Retries with backoff, a rate, and a stop that ends every wait."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from app.errors import VaultError

T = TypeVar("T")
_SHORTEST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0


class StoppedError(Exception):
    """The work was stopped, or its retries are used up; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Retry:
    """Retries a call for at most `seconds`, and keeps calls within `per_second`.

    Every method that waits raises `StoppedError` as soon as `stop` was called. `on_wait` gets each error that is
    retried, and the pause before the retry in seconds.
    """

    def __init__(
        self, *, seconds: float, per_second: float | None, on_wait: Callable[[VaultError, float], None]
    ) -> None:
        self._seconds = seconds
        self._per_second = per_second
        self._on_wait = on_wait
        self._next_free_at = 0.0
        self._stop = asyncio.Event()
        self._stop_reason = ""

    @property
    def stopped(self) -> bool:
        return self._stop.is_set()

    def stop(self, reason: str) -> None:
        """End every wait, now and later; the first reason counts."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    def require_running(self) -> None:
        """Raise `StoppedError` if `stop` was called."""
        if self._stop.is_set():
            raise StoppedError(self._stop_reason)

    async def keep_rate(self) -> None:
        """Wait until the rate allows one more."""
        self.require_running()
        if self._per_second is not None:
            now = time.monotonic()
            at = max(self._next_free_at, now)
            self._next_free_at = at + 1 / self._per_second
            if at > now:
                await self.pause(at - now)

    async def call(self, call: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Call, and repeat while the error is retryable, with growing pauses; raises other errors as they are."""
        began, pause = time.monotonic(), _SHORTEST_PAUSE_SECONDS
        while True:
            self.require_running()
            try:
                return await call(*arguments)
            except VaultError as error:
                if not error.retryable:
                    raise
                if time.monotonic() - began > self._seconds:
                    raise StoppedError(error.detail) from None
                self._on_wait(error, pause)
            await self.pause(pause * random.uniform(0.5, 1))  # noqa: S311  jitter: callers that fail together spread out
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def while_running(self, work: Awaitable[T]) -> T:
        """Await long work, and cancel it as soon as `stop` is called."""
        working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(self._stop.wait())
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                self.require_running()
            return await working
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.wait({working, stopping})

    async def pause(self, seconds: float) -> None:
        """Sleep."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        self.require_running()
