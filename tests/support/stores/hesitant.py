"""A repository that hesitates before and after its calls, so that others come between."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

from app.tokens.repository import TokenRepository

Pause = Callable[[], Awaitable[None]]


async def no_pause() -> None:
    """Go on."""


class _Hesitant:
    def __init__(self, tokens: TokenRepository, pause: Pause, calls: Counter[str], only: str | None) -> None:
        self._tokens = tokens
        self._pause = pause
        self._calls = calls
        self._only = only

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._tokens, name)
        pause = self._pause if self._only in {None, name} else no_pause

        async def hesitating(*arguments: Any, **named: Any) -> Any:
            await pause()
            self._calls[name] += 1
            try:
                return await call(*arguments, **named)
            finally:
                await pause()

        return hesitating


def hesitant(
    tokens: TokenRepository, pause: Pause, *, calls: Counter[str] | None = None, only: str | None = None
) -> TokenRepository:
    """Return the same store, which awaits `pause` around every call, or around the `only` one of that name."""
    return cast("TokenRepository", _Hesitant(tokens, pause, Counter() if calls is None else calls, only))


def pauses(milliseconds: list[int]) -> Pause:
    """Pause so long, one after the other, and then from the beginning again; 0 lets others run for one turn."""
    turn = 0

    async def pause() -> None:
        nonlocal turn
        turn += 1
        await asyncio.sleep(milliseconds[turn % len(milliseconds)] / 1_000)

    return pause
