"""Where slow keys are derived: on few threads, behind everybody else, and not for callers that have stopped waiting."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from app.errors import KeyUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
MAXIMUM_WAITING: Final = 128  # more than the largest batch; at 20 ms each on one thread, as much as fits into the wait
WAIT_SECONDS: Final = 2.0  # shorter than the caller's own deadline, by more than a derivation takes
REFUSAL_SECONDS: Final = 1.0
_LOWEST_PRIORITY: Final = 19


class Derivations:
    """A queue for PBKDF2. One processor is left to the event loop, and on Linux its threads run at the lowest priority.

    What waits too long fails without having been begun, and what finds the queue full fails after `refusal_seconds`:
    who is told at once asks again at once, and a flood of such callers would take the event loop from the others. Both
    are `KeyUnavailable`, since the same call may pass later.
    """

    def __init__(
        self,
        *,
        maximum_waiting: int = MAXIMUM_WAITING,
        wait_seconds: float = WAIT_SECONDS,
        refusal_seconds: float = REFUSAL_SECONDS,
    ) -> None:
        self._maximum_waiting = maximum_waiting
        self._refusal_seconds = refusal_seconds
        self._wait_seconds = wait_seconds
        self._waiting = 0
        threads = max(1, (os.cpu_count() or 1) - 1)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="derivation", initializer=_yield_to_others)

    def submit(self, derive: Callable[[], T]) -> asyncio.Future[T]:
        """Have it done in a thread; the result is `KeyUnavailable` where too many wait already."""
        if self._waiting >= self._maximum_waiting:
            return self._refused()
        due = time.monotonic() + self._wait_seconds

        def derive_in_time() -> T:
            if time.monotonic() > due:
                message = "the key could not be derived in time"
                raise KeyUnavailable(message, retry_after_seconds=2)
            return derive()

        future = asyncio.get_running_loop().run_in_executor(self._threads, derive_in_time)
        self._waiting += 1
        future.add_done_callback(self._done)
        return future

    def _refused(self) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        refused: asyncio.Future[T] = loop.create_future()

        def refuse() -> None:
            if not refused.done():  # else its caller has gone away
                message = "too many keys of old tokens are being derived"
                refused.set_exception(KeyUnavailable(message, retry_after_seconds=2))

        loop.call_later(self._refusal_seconds, refuse)
        return refused

    def _done(self, _: asyncio.Future[T]) -> None:
        self._waiting -= 1


def _yield_to_others() -> None:
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
