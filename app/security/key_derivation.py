"""Key derivation queue: PBKDF2 on few threads of low priority, in equal shares between services."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from app.cpu_count import spare_processors
from app.errors import KeyUnavailable

T = TypeVar("T")
MAXIMUM_OF_A_SERVICE: Final = 128  # more than the largest batch, and than one thread derives in 2.5 s at 20 ms each
REFUSAL_SECONDS: Final = 1.0
_RETRY_AFTER_SECONDS: Final = 2
_LOW_PRIORITY: Final = 10  # a tenth of a normal thread's share; the lowest would starve beside any busy program


class _Share:
    """One service's derivations: `count` of them in all, as many in the pool as `slots` allows."""

    def __init__(self, *, threads: int) -> None:
        self.count = 0
        self.slots = asyncio.Semaphore(threads)


class KeyDerivationQueue:
    """Slow derivations, for the tasks of one event loop. docs/decisions/key-derivation.md has the reasons and figures.

    The pool has a thread for every usable processor but one, which is left to the event loop; on Linux its threads
    run at a low priority. No service has more derivations in the pool than there are threads. So a service with
    one token to read waits for one round of each other service, however long their queues are. A running derivation
    cannot be stopped: it keeps its slot until it ends, even if its caller has left.

    A derivation whose caller is cancelled before it starts is not made. A service with `maximum_of_a_service` of them
    is refused, and only after `refusal_seconds`: callers that are refused at once retry at once, which keeps the
    event loop busy.
    """

    def __init__(
        self,
        *,
        maximum_of_a_service: int = MAXIMUM_OF_A_SERVICE,
        refusal_seconds: float = REFUSAL_SECONDS,
        threads: int | None = None,
    ) -> None:
        self._maximum_of_a_service = maximum_of_a_service
        self._refusal_seconds = refusal_seconds
        self._threads = threads or spare_processors()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="derivation", initializer=_lower_priority)
        self._shares: dict[str, _Share] = {}

    async def run(self, derive: Callable[[], T], *, service: str = "") -> T:
        """Return the result of `derive`; raises what it raises, and `KeyUnavailable` if the service has too many."""
        share = self._shares.setdefault(service, _Share(threads=self._threads))
        if share.count >= self._maximum_of_a_service:
            await asyncio.sleep(self._refusal_seconds)
            raise KeyUnavailable(
                "too many keys of old tokens are being derived", retry_after_seconds=_RETRY_AFTER_SECONDS
            )
        share.count += 1
        try:
            async with share.slots:
                return await self._in_pool(derive)
        finally:
            share.count -= 1
            if not share.count:
                del self._shares[service]

    async def _in_pool(self, derive: Callable[[], T]) -> T:
        job = self._submit(derive)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            if job.running():
                with suppress(Exception):  # nobody is left to get the error
                    await asyncio.wrap_future(job)
            raise

    def _submit(self, derive: Callable[[], T]) -> Future[T]:
        try:
            return self._pool.submit(derive)
        except RuntimeError:  # the system has no thread left
            raise KeyUnavailable(
                "there is no thread to derive the key", retry_after_seconds=_RETRY_AFTER_SECONDS
            ) from None


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        thread = threading.get_native_id()
        with suppress(OSError):  # a sandbox may forbid it
            os.setpriority(os.PRIO_PROCESS, thread, max(_LOW_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread)))
