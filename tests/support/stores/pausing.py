"""A repository that awaits a pause before and after its calls, so other tasks run in between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from app.tokens.repository import TokenRepository

Pause = Callable[[], Awaitable[None]]


class _PausingRepository:
    def __init__(self, tokens: TokenRepository, pause: Pause, calls: Counter[str], only: str | None) -> None:
        self._tokens = tokens
        self._pause = pause
        self._calls = calls
        self._only = only

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._tokens, name)
        pauses_here = self._only in {None, name}

        async def pausing_call(*arguments: Any, **named: Any) -> Any:
            if pauses_here:
                await self._pause()
            self._calls[name] += 1
            try:
                return await call(*arguments, **named)
            finally:
                if pauses_here:
                    await self._pause()

        return pausing_call


def pausing(
    tokens: TokenRepository, pause: Pause, *, calls: Counter[str] | None = None, only: str | None = None
) -> TokenRepository:
    """Return a repository that awaits `pause` around every call, or around calls of the method `only`.

    `calls` counts all calls by method.
    """
    return cast("TokenRepository", _PausingRepository(tokens, pause, Counter() if calls is None else calls, only))


def pauses(milliseconds: list[int]) -> Pause:
    """Return a pause that takes these times in turn, over and over; 0 yields to the event loop once."""
    turn = 0

    async def pause() -> None:
        nonlocal turn
        turn += 1
        await asyncio.sleep(milliseconds[turn % len(milliseconds)] / 1_000)

    return pause
