"""Single flight: one call for concurrent callers, its result and error shared, nothing kept, no waiter lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from app.errors import KeyUnavailable
from app.single_flight import AsyncSingleFlight, SharedCall, ThreadSingleFlight
from tests.support.waiting import eventually

_SECONDS = 30
_ERRORS = [KeyUnavailable("x", retry_after_seconds=7), ValueError("x"), SystemExit(3)]


class Leader:
    """A call that waits for `end`, and then raises `error` or returns how often it was called."""

    def __init__(self) -> None:
        self.calls = 0
        self.running = threading.Event()
        self.end = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> int:
        self.calls += 1
        self.running.set()
        assert self.end.wait(_SECONDS)
        if self.error is not None:
            raise self.error
        return self.calls


def _outcomes(flights: ThreadSingleFlight[int], leader: Leader, number: int) -> list[Any]:
    """Call from `number` threads, end the call once they all wait, and return what each got."""

    def run() -> Any:
        try:
            return flights.run("name", leader)
        except BaseException as error:  # noqa: BLE001  it is the outcome
            return error

    with ThreadPoolExecutor(number) as threads:
        running = [threads.submit(run) for _ in range(number)]
        assert leader.running.wait(_SECONDS)
        [call] = flights._calls.values()  # noqa: SLF001  how many threads wait has no public name
        eventually(lambda: len(call._condition._waiters) == number - 1)  # type: ignore[attr-defined]  # noqa: SLF001  see above
        leader.end.set()
        return [one.result(_SECONDS) for one in running]


def test_threads_share_one_call_and_no_result_is_kept() -> None:
    leader, flights = Leader(), ThreadSingleFlight[int]()
    assert _outcomes(flights, leader, 20) == [1] * 20
    assert flights.run("name", leader) == 2


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
def test_threads_share_an_error_each_as_its_own_object(error: BaseException) -> None:
    leader, flights = Leader(), ThreadSingleFlight[int]()
    leader.error = error
    outcomes = _outcomes(flights, leader, 20)
    assert {(type(one), str(one)) for one in outcomes} == {(type(error), str(error))}
    assert {getattr(one, "retry_after_seconds", None) for one in outcomes} == {
        getattr(error, "retry_after_seconds", None)
    }
    assert len({id(one) for one in outcomes}) == 20
    assert max(len(traceback.extract_tb(one.__traceback__)) for one in outcomes) < 8
    leader.error = None
    assert flights.run("name", leader) == 2, "the error was kept"


def test_calls_of_different_names_are_separate() -> None:
    flights: ThreadSingleFlight[str] = ThreadSingleFlight()
    assert flights.run("a", lambda: flights.run("b", lambda: "inner") + " outer") == "inner outer"


class Calls:
    """Start shared calls that end when the test says so."""

    def __init__(self, *, cancelled_when_unawaited: bool = False) -> None:
        self.flights: AsyncSingleFlight[int] = AsyncSingleFlight()
        self.started: list[asyncio.Future[int]] = []
        self._cancelled_when_unawaited = cancelled_when_unawaited

    def start(self) -> SharedCall[int]:
        call: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.started.append(call)
        return SharedCall(call, cancelled_when_unawaited=self._cancelled_when_unawaited)

    async def result(self) -> int:
        return await self.flights.join("name", self.start).result()

    async def waiting(self, number: int) -> list[asyncio.Task[int]]:
        tasks = [asyncio.create_task(self.result()) for _ in range(number)]
        await asyncio.sleep(0)  # each runs up to its wait
        return tasks


async def test_tasks_share_one_call_and_no_result_is_kept() -> None:
    calls = Calls()
    tasks = await calls.waiting(20)
    calls.started[0].set_result(1)
    assert await asyncio.gather(*tasks) == [1] * 20
    assert len(calls.started) == 1
    [task] = await calls.waiting(1)
    calls.started[1].set_result(2)
    assert await task == 2


async def test_tasks_share_an_error_and_only_the_first_gets_the_original() -> None:
    calls = Calls()
    tasks = await calls.waiting(20)
    error = KeyUnavailable("x", retry_after_seconds=7)
    calls.started[0].set_exception(error)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[0] is error
    assert len({id(one) for one in outcomes}) == 20
    assert all(isinstance(one, KeyUnavailable) and one.retry_after_seconds == 7 for one in outcomes)
    assert max(len(traceback.extract_tb(one.__traceback__)) for one in outcomes if isinstance(one, Exception)) < 8


async def test_a_call_goes_on_when_its_waiters_leave() -> None:
    calls = Calls()
    for task in await calls.waiting(2):
        task.cancel()
    await asyncio.sleep(0)
    [late] = await calls.waiting(1)
    calls.started[0].set_result(1)
    assert await late == 1
    assert len(calls.started) == 1


async def test_a_derivation_is_cancelled_when_its_last_waiter_leaves() -> None:
    calls = Calls(cancelled_when_unawaited=True)
    first, second = await calls.waiting(2)
    first.cancel()
    await asyncio.wait([first])
    assert not calls.started[0].cancelled()
    second.cancel()
    await asyncio.wait([second])
    assert calls.started[0].cancelled()


async def test_a_call_that_is_being_cancelled_is_not_joined() -> None:
    calls = Calls(cancelled_when_unawaited=True)

    ending = asyncio.Event()

    def start_slowly_cancelled() -> SharedCall[int]:
        async def call() -> int:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(_SECONDS)
            await ending.wait()
            raise asyncio.CancelledError

        return SharedCall(asyncio.create_task(call()), cancelled_when_unawaited=True)

    shared = calls.flights.join("name", start_slowly_cancelled)
    waiter = asyncio.create_task(shared.result())
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.wait([waiter])
    [task] = await calls.waiting(1)
    calls.started[0].set_result(1)
    assert await task == 1
    ending.set()


async def test_an_error_without_waiters_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    [task] = await calls.waiting(1)
    task.cancel()
    await asyncio.wait([task])
    calls.started.pop().set_exception(ValueError("x"))
    await asyncio.sleep(0)
    del calls, task
    gc.collect()
    assert caplog.text == ""


class _UncopyableError(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


async def test_an_error_that_cannot_be_copied_reaches_every_waiter() -> None:
    async def fail() -> int:
        raise _UncopyableError(7, "a library's error")

    flights = AsyncSingleFlight[int]()
    shared = flights.join("name", lambda: SharedCall(asyncio.ensure_future(fail())))
    results = await asyncio.gather(*(shared.result() for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [_UncopyableError] * 3
