"""Single flight: concurrent callers for one name share one call, its result and its error.

Threads use `ThreadSingleFlight`, tasks of an event loop `AsyncSingleFlight`: a thread blocks until the call ends, while
a task can be cancelled and leave the call to the others. Neither keeps a result or an error: once a call has ended, the
next caller starts another one.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

from app.errors import VaultError

T = TypeVar("T")


class ThreadSingleFlight(Generic[T]):
    """Single flight for threads, which block. The first caller makes the call in its own thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[Hashable, Future[T]] = {}

    def run(self, name: Hashable, call: Callable[[], T]) -> T:
        """Make the call, or wait for the one in progress, which is not bounded in time here."""
        with self._lock:
            shared = self._calls.get(name)
            if shared is None:
                own = self._calls[name] = Future()
        if shared is not None:
            error = shared.exception()
            if error is not None:
                raise _copy_of(error)
            return shared.result()
        try:
            result = call()
        except BaseException as error:
            self._forget(name)
            own.set_exception(error)
            raise
        self._forget(name)
        own.set_result(result)
        return result

    def _forget(self, name: Hashable) -> None:
        with self._lock:
            del self._calls[name]


class SharedCall(Generic[T]):
    """One call in progress and the number of tasks that wait for it.

    The call goes on when its waiters leave, unless it is `cancelled_when_unawaited`. The first waiter raises the
    call's own error, the others raise copies.
    """

    def __init__(self, call: asyncio.Future[T], *, cancelled_when_unawaited: bool = False) -> None:
        self._call = call
        self._cancelled_when_unawaited = cancelled_when_unawaited
        self._waiting = 0
        self._abandoned = False
        self._raised = False
        call.add_done_callback(_retrieve_error)

    @property
    def over(self) -> bool:
        """Whether the call has ended or is being cancelled."""
        return self._abandoned or self._call.done()

    async def result(self) -> T:
        """Wait, and return the result or raise the error."""
        error = await self.error()
        if error is None:
            return self._call.result()
        if self._raised:
            raise _copy_of(error)
        self._raised = True
        raise error

    async def error(self) -> BaseException | None:
        """Wait, and return the error; `None` after a success or a cancellation."""
        self._waiting += 1
        try:
            await asyncio.wait([self._call])  # cancelling this task does not cancel the call
        finally:
            self._waiting -= 1
            if self._cancelled_when_unawaited and not self._waiting:
                self._abandoned = True
                self._call.cancel()  # no effect on a call that has ended
        return None if self._call.cancelled() else self._call.exception()

    def when_ended(self, callback: Callable[[], None]) -> None:
        self._call.add_done_callback(lambda _: callback())


class AsyncSingleFlight(Generic[T]):
    """Single flight for the tasks of one event loop."""

    def __init__(self) -> None:
        self._shared_calls: dict[Hashable, SharedCall[T]] = {}

    def get(self, name: Hashable) -> SharedCall[T] | None:
        """Return the call in progress."""
        shared = self._shared_calls.get(name)
        return None if shared is None or shared.over else shared

    def join(self, name: Hashable, start: Callable[[], SharedCall[T]]) -> SharedCall[T]:
        """Return the call in progress, or start one."""
        shared = self.get(name)
        if shared is None:
            shared = self._shared_calls[name] = start()
            shared.when_ended(partial(self._forget, name, shared))
        return shared

    def _forget(self, name: Hashable, shared: SharedCall[T]) -> None:
        if self._shared_calls.get(name) is shared:
            del self._shared_calls[name]


def _copy_of(error: BaseException) -> BaseException:
    """Return an error to raise a second time: one object would collect the traceback of every task that raises it.

    An error of a library that cannot be copied is returned itself.
    """
    if isinstance(error, VaultError):
        return error.copy()
    try:
        return copy.copy(error)
    except Exception:  # noqa: BLE001  its constructor takes other arguments than it keeps
        return error


def _retrieve_error(call: asyncio.Future[Any]) -> None:
    """Retrieve the error although perhaps nobody waits: asyncio logs errors that are never retrieved."""
    if not call.cancelled():
        call.exception()
