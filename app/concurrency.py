"""Concurrent calls that all end before their caller goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all calls, then return their results in order or raise the first error.

    Unlike `asyncio.TaskGroup` an error cancels none of the others: a write that was sent must learn its outcome.
    """
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
