"""Deadlines of blocks, which share a timer while they are short."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from app.deadline import TICK_SECONDS, Deadline

SOON = 0.01
AFTER_THE_TICK = TICK_SECONDS + 0.05
LONG = 3600.0
_HANG_SECONDS = 60.0  # shows a hang


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _wait(seconds: float) -> None:
    with Deadline(_now() + seconds):
        await asyncio.sleep(_HANG_SECONDS)


@pytest.mark.parametrize("seconds", [-1.0, 0.0, SOON, AFTER_THE_TICK])
async def test_a_block_that_takes_too_long_raises_at_its_deadline(seconds: float) -> None:
    until = _now() + seconds
    with pytest.raises(TimeoutError):
        await _wait(seconds)
    assert _now() >= until - 0.001
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]  # a test is a task


async def test_each_of_many_blocks_has_its_own_deadline() -> None:
    async def outcome(seconds: float) -> str:
        try:
            with Deadline(_now() + seconds):
                await asyncio.sleep(AFTER_THE_TICK + SOON)
        except TimeoutError:
            return "late"
        return "done"

    seconds = [SOON, LONG, AFTER_THE_TICK - SOON, LONG]
    assert await asyncio.gather(*map(outcome, seconds)) == ["late", "done", "late", "done"]


@pytest.mark.parametrize("seconds", [0.0, AFTER_THE_TICK])
async def test_a_block_that_has_ended_is_not_cancelled(seconds: float) -> None:
    with Deadline(_now() + seconds):
        pass
    await asyncio.sleep(seconds + SOON)


async def test_no_deadline_is_none() -> None:
    with Deadline(None):
        await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [SOON, LONG])
async def test_a_cancelled_task_stays_cancelled(seconds: float) -> None:
    """Also if its deadline has passed meanwhile."""
    inside = asyncio.Event()

    async def block() -> None:
        with Deadline(_now() + seconds):
            inside.set()
            await asyncio.sleep(_HANG_SECONDS)

    task = asyncio.create_task(block())
    await inside.wait()
    until = _now() + SOON
    while _now() < until:  # keeps the loop from running the timer first
        pass
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_an_error_of_the_block_is_raised_unchanged() -> None:
    with pytest.raises(KeyError), Deadline(_now() + LONG):
        raise KeyError


@pytest.mark.parametrize(("outer", "inner", "late"), [(SOON, LONG, "outer"), (LONG, SOON, "inner")])
async def test_the_first_of_two_nested_deadlines_ends_its_block(outer: float, inner: float, late: str) -> None:
    ended = []
    try:
        with Deadline(_now() + outer):
            try:
                with Deadline(_now() + inner):
                    await asyncio.sleep(_HANG_SECONDS)
            except TimeoutError:
                ended.append("inner")
    except TimeoutError:
        ended.append("outer")
    assert ended == [late]


def test_a_loop_that_ended_before_its_tick_leaves_nothing() -> None:
    for _ in range(2):
        with pytest.raises(TimeoutError):
            asyncio.run(_short_then(_wait, AFTER_THE_TICK))


async def _short_then(wait: Callable[[float], object], seconds: float) -> None:
    with Deadline(_now() + LONG):
        await asyncio.sleep(0)
    await wait(seconds)  # type: ignore[misc]  # a coroutine
