"""Where slow keys are derived: on few threads, behind everybody else, and not for callers that have stopped waiting."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from app.errors import KeyUnavailable
from app.processors import spare_processors
from app.tokens.acting_for import NOBODY

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
MAXIMUM_WAITING: Final = 128  # more than the largest batch; at 20 ms each on one thread, as much as fits into the wait
WAIT_SECONDS: Final = 2.0  # shorter than the caller's own deadline, by more than a derivation takes
REFUSAL_SECONDS: Final = 1.0
_LOWEST_PRIORITY: Final = 19


@dataclass(slots=True, eq=False)
class _Job:
    derive: Callable[[], Any]
    due: float
    future: Future[Any] = field(default_factory=Future)

    def run(self) -> Any:  # noqa: ANN401  what `derive` returns
        if time.monotonic() > self.due:
            message = "the key could not be derived in time"
            raise KeyUnavailable(message, retry_after_seconds=2)
        return self.derive()


class Derivations:
    """A queue for PBKDF2. One processor is left to the event loop, and on Linux its threads run at the lowest priority.

    Services take turns, each with its oldest derivation. One alone may fill the whole queue; where it is full the
    service that has the most waiting goes without its newest, which may be the one that comes.

    What waits too long fails without having been begun, and what finds no place fails after `refusal_seconds`:
    who is told at once asks again at once, and a flood of such callers would take the event loop from the others. Both
    are `KeyUnavailable`, since the same call may pass later.
    """

    def __init__(
        self,
        *,
        maximum_waiting: int = MAXIMUM_WAITING,
        wait_seconds: float = WAIT_SECONDS,
        refusal_seconds: float = REFUSAL_SECONDS,
        threads: int | None = None,
    ) -> None:
        """`maximum_waiting` counts those that are being derived too; `threads` are all usable processors but one."""
        self._maximum_waiting = maximum_waiting
        self._refusal_seconds = refusal_seconds
        self._wait_seconds = wait_seconds
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # whose turn it is comes first, none is empty
        self._count = 0
        threads = threads or spare_processors()
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="derivation", initializer=_yield_to_others)

    def submit(self, derive: Callable[[], T], *, service: str = NOBODY) -> asyncio.Future[T]:
        """Have it done in a thread; the result is `KeyUnavailable` where too many wait already."""
        job = _Job(derive, time.monotonic() + self._wait_seconds)
        with self._lock:
            is_new = self._count < self._maximum_waiting
            refused = None if is_new else self._give_way(job, service)
            if refused is not job:
                self._waiting.setdefault(service, deque()).append(job)
            self._count += is_new
        if is_new:
            self._threads.submit(self._derive_next)  # as often as jobs wait, and each takes whichever has its turn
        if refused is not None:
            asyncio.get_running_loop().call_later(self._refusal_seconds, _refuse, refused)
        return asyncio.wrap_future(job.future)

    def _give_way(self, job: _Job, service: str) -> _Job:
        """Take out the newest of the service that has more waiting than this one will have, or return this job."""
        heaviest = max(self._waiting, key=lambda name: len(self._waiting[name]), default=service)
        if len(self._waiting.get(heaviest, ())) <= len(self._waiting.get(service, ())) + 1:
            return job
        return self._waiting[heaviest].pop()

    def _derive_next(self) -> None:
        with self._lock:
            service, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[service] = jobs  # behind the others
        wanted = job.future.set_running_or_notify_cancel()
        try:
            result = job.run() if wanted else None
        except BaseException as error:  # noqa: BLE001  whoever waits is told, whatever it is
            self._give_back()
            job.future.set_exception(error)
            del job  # which holds the error now, whose traceback holds this frame
        else:
            self._give_back()
            if wanted:
                job.future.set_result(result)

    def _give_back(self) -> None:
        """Free the place before anybody hears of it, who may need it for the next."""
        with self._lock:
            self._count -= 1


def _refuse(job: _Job) -> None:
    if job.future.set_running_or_notify_cancel():  # else its caller has gone away
        job.future.set_exception(KeyUnavailable("too many keys of old tokens are being derived", retry_after_seconds=2))


def _yield_to_others() -> None:
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
