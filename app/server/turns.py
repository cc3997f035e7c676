"""Whose turn it is among those who have asked for more than one thing at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final
from weakref import WeakKeyDictionary

_turns: Final[WeakKeyDictionary[asyncio.AbstractEventLoop, deque[Callable[[], None]]]] = WeakKeyDictionary()


def in_turn(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call it on the loop, after all that have asked before: one in each of its rounds.

    A loop accepts one connection in a round. If every connection that has sent ahead were served in each, a thousand of
    them would let a newcomer wait for all of their work.
    """
    queue = _turns.setdefault(loop, deque())
    queue.append(call)
    if len(queue) == 1:
        loop.call_soon(_next, loop, queue)


def _next(loop: asyncio.AbstractEventLoop, queue: deque[Callable[[], None]]) -> None:
    try:
        queue[0]()
    finally:
        queue.popleft()
        if queue:
            loop.call_soon(_next, loop, queue)
