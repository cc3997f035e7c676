"""A deadline for a block of a task that mostly ends long before it."""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Final, Self

TICK_SECONDS: Final = 0.1


class Deadline:
    """Context manager that raises `TimeoutError` in place of the block's cancellation, as `asyncio.timeout_at` does.

    A timer for each block costs as much as decrypting a token. So one timer watches all blocks, and those that are
    still open after `TICK_SECONDS` get one of their own.
    """

    __slots__ = ("_cancelling", "_expired", "_task", "_timer", "_until")

    def __init__(self, until: float | None) -> None:
        """`until` is a time on the event loop's clock, `None` for no deadline."""
        self._until = until
        self._timer: asyncio.TimerHandle | None = None
        self._expired = False

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task")
        self._task, self._cancelling = task, task.cancelling()
        if self._until is not None:
            _open_blocks.add(self, self._until)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _open_blocks.remove(self)
        if self._timer is not None:
            self._timer.cancel()
        # the task's own cancellation, which may come as well, stays one
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def start_timer(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        self._timer = loop.call_at(until, self._expire)

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()


class _OpenBlocks(threading.local):
    """The blocks of this thread's event loop that have no timer yet, with the times when they must end."""

    def __init__(self) -> None:
        self._blocks: dict[Deadline, float] = {}
        self._loop: asyncio.AbstractEventLoop | None = None  # with a tick to come

    def add(self, block: Deadline, until: float) -> None:
        loop = asyncio.get_running_loop()
        if until - loop.time() < TICK_SECONDS:
            block.start_timer(loop, until)
            return
        if self._loop is not loop:
            self._loop, self._blocks = loop, {}  # an earlier loop ended before its tick
            loop.call_later(TICK_SECONDS, self._tick, loop)
        self._blocks[block] = until

    def remove(self, block: Deadline) -> None:
        self._blocks.pop(block, None)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, blocks, self._blocks = None, self._blocks, {}
        for block, until in blocks.items():
            block.start_timer(loop, until)


_open_blocks: Final = _OpenBlocks()
