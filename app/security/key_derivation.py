"""Where slow keys are derived: on few threads, behind everybody else, and not for callers that have stopped waiting."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from app.errors import KeyUnavailable
from app.processors import spare_processors

T = TypeVar("T")
MAXIMUM_OF_A_SERVICE: Final = 128  # more than the largest batch, and than one thread derives in the wait at 20 ms each
MAXIMUM_WAITING: Final = 8 * MAXIMUM_OF_A_SERVICE  # so that it takes eight floods until one takes places from another
WAIT_SECONDS: Final = 2.0  # shorter than the caller's own deadline, by more than a derivation takes
REFUSAL_SECONDS: Final = 1.0
_LOWEST_PRIORITY: Final = 19


@dataclass(slots=True, eq=False)
class _Job:
    derive: Callable[[], Any]
    due: float
    future: Future[Any] = field(default_factory=Future)


class KeyDerivationQueue:
    """A queue for PBKDF2. One processor is left to the event loop, and on Linux its threads run at the lowest priority.

    Services take turns, each with its oldest derivation, and each has so many places of its own. Where those of all
    together are taken, the service that has the most waiting goes without its newest, which may be the one that comes.
    So one flood leaves another service all its places and every second turn, and no more than that: a large batch of
    old tokens may still be late, but what was derived of it is at hand when it is asked for again.

    What waits too long fails without having been begun, and what finds no place fails after `refusal_seconds`:
    who is told at once asks again at once, and a flood of such callers would take the event loop from the others. Both
    are `KeyUnavailable`, since the same call may pass later.
    """

    def __init__(
        self,
        *,
        maximum_waiting: int = MAXIMUM_WAITING,
        maximum_of_a_service: int = MAXIMUM_OF_A_SERVICE,
        wait_seconds: float = WAIT_SECONDS,
        refusal_seconds: float = REFUSAL_SECONDS,
        threads: int | None = None,
    ) -> None:
        """Have so many wait, apart from those being derived, on `threads`: by default all usable processors but one."""
        self._maximum_waiting = maximum_waiting
        self._maximum_of_a_service = maximum_of_a_service
        self._refusal_seconds = refusal_seconds
        self._wait_seconds = wait_seconds
        self._maximum_threads = threads or spare_processors()
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Job]] = OrderedDict()  # whose turn it is comes first, none is empty
        self._threads = 0  # each ends when nothing waits, so without any nothing does

    def submit(self, derive: Callable[[], T], *, service: str = "") -> asyncio.Future[T]:
        """Have it done in a thread; the result is `KeyUnavailable` where too many wait already.

        Who cancels it frees its place, and has it not done where it is not under way.
        """
        job = _Job(derive, time.monotonic() + self._wait_seconds)
        with self._lock:
            if self._have_a_thread():
                refused, reason = self._let_in(job, service), "too many keys of old tokens are being derived"
            else:
                refused, reason = job, "there is no thread to derive the key"
        if refused is not None:
            asyncio.get_running_loop().call_later(self._refusal_seconds, _refuse, refused, reason)
        waiting = asyncio.wrap_future(job.future)
        waiting.add_done_callback(partial(self._withdraw, job, service))
        return waiting

    def _withdraw(self, job: _Job, service: str, waiting: asyncio.Future[Any]) -> None:
        """Free the place of a job that nobody waits for any more, unless it is being done already."""
        if not waiting.cancelled():
            return
        with self._lock, suppress(KeyError, ValueError):
            self._waiting[service].remove(job)
            if not self._waiting[service]:
                del self._waiting[service]

    def _have_a_thread(self) -> bool:
        """Start one more if there may be one, and return whether there is any."""
        if self._threads < self._maximum_threads:
            with suppress(RuntimeError):  # the system has none to give
                threading.Thread(target=self._derive_all, name="derivation").start()
                self._threads += 1
        return self._threads > 0

    def _let_in(self, job: _Job, service: str) -> _Job | None:
        """Have it wait, and return who has to go for that, which may be itself."""
        if len(self._waiting.get(service, ())) >= self._maximum_of_a_service:
            return job
        refused = None
        if sum(map(len, self._waiting.values())) >= self._maximum_waiting:
            refused = self._give_way(job, service)
        if refused is not job:
            self._waiting.setdefault(service, deque()).append(job)
        return refused

    def _give_way(self, job: _Job, service: str) -> _Job:
        """Take out the newest of the service that has more waiting than this one will have, or return this job."""
        heaviest = max(self._waiting, key=lambda name: len(self._waiting[name]), default=service)
        if len(self._waiting.get(heaviest, ())) <= len(self._waiting.get(service, ())) + 1:
            return job
        return self._waiting[heaviest].pop()

    def _derive_all(self) -> None:
        _yield_to_others()
        while (job := self._next()) is not None:
            _derive(job)

    def _next(self) -> _Job | None:
        """Take out the job whose turn it is, or count this thread as gone."""
        with self._lock:
            if not self._waiting:
                self._threads -= 1
                return None
            service, jobs = self._waiting.popitem(last=False)
            job = jobs.popleft()
            if jobs:
                self._waiting[service] = jobs  # behind the others
            return job


def _derive(job: _Job) -> None:
    if not job.future.set_running_or_notify_cancel():
        return
    try:
        if time.monotonic() > job.due:
            raise KeyUnavailable("the key could not be derived in time", retry_after_seconds=2)  # noqa: TRY301  as if the derivation had
        result = job.derive()
    except BaseException as error:  # noqa: BLE001  whoever waits is told, whatever it is
        job.future.set_exception(error)
        del job  # which holds the error now, whose traceback holds this frame
    else:
        job.future.set_result(result)


def _refuse(job: _Job, reason: str) -> None:
    if job.future.set_running_or_notify_cancel():  # else its caller has gone away
        job.future.set_exception(KeyUnavailable(reason, retry_after_seconds=2))


def _yield_to_others() -> None:
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        with suppress(OSError):  # a sandbox may forbid it, and they are few anyway
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWEST_PRIORITY)
