"""Wait for a condition, never for a duration. The bounds only end a test that hangs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from app.errors import VaultError

_Result = TypeVar("_Result")


def eventually(holds: Callable[[], bool], *, within_seconds: float = 120.0, every_seconds: float = 0.02) -> None:
    """Return once the condition holds; fail the test if it does not in time. Ask seldom for what takes seconds."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        time.sleep(every_seconds)


async def eventually_async(holds: Callable[[], bool], *, within_seconds: float = 120.0) -> None:
    """Do the same on the event loop, which stays free."""
    deadline = time.monotonic() + within_seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {within_seconds} s"
        await asyncio.sleep(0.01)


async def once_available(call: Callable[[], Awaitable[_Result]], *, within_seconds: float = 120.0) -> _Result:
    """Return the result of a call that callers may repeat: on a busy machine it may miss its own deadline."""
    deadline = time.monotonic() + within_seconds
    while True:
        try:
            return await call()
        except VaultError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.01)
