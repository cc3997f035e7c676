"""Operations whose record fails are in the audit trail once it can be written again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from app.audit.retry_buffer import MAXIMUM_RETRIED, RetryBuffer
from app.errors import AuditUnavailable, Unauthenticated
from app.tokens.events import Operation, TokenEvent
from tests.support.audit.trails import (
    WITHOUT_KEY,
    an_event,
    files,
    full_disk,
    members,
    opened_trail,
    recovered,
    verified,
)


def _event(operation: Operation, number: int, outcome: str = "success") -> TokenEvent:
    return an_event(number, outcome=outcome)._replace(operation=operation, revealed=())


async def test_retried_events_keep_their_order_and_reads_reveal_nothing(tmp_path: Path) -> None:
    failing = [
        _event(Operation.DELETE, 1),
        an_event(2),
        _event(Operation.LIST, 3),
        _event(Operation.STORE, 4),
        an_event(5, outcome="token_not_found"),
        _event(Operation.ROTATE, 6, "version_conflict"),
    ]
    async with opened_trail(tmp_path) as trail:
        await trail.append(an_event(0))
        [file] = files(tmp_path)
        with full_disk(file):
            outcomes = await asyncio.gather(*map(trail.append, failing), return_exceptions=True)
        assert {type(one) for one in outcomes} == {AuditUnavailable}
        await recovered(trail)
        await trail.append(an_event(7))
    events = members([file])
    assert [(event["operation"], event["outcome"], event["revealed"], event.get("late")) for event in events] == [
        ("reveal", "success", ["access_token"], None),
        ("delete", "success", [], True),
        ("reveal", "audit_unavailable", [], True),
        ("list", "audit_unavailable", [], True),
        ("store", "success", [], True),
        ("reveal", "token_not_found", [], True),
        ("rotate", "version_conflict", [], True),
        ("reveal", "success", ["access_token"], None),
    ]
    kinds = [line.partition(b'"kind":"')[2].partition(b'"')[0] for line in file.read_bytes().splitlines()]
    assert kinds == [b"start", b"event", b"resumed", *[b"event"] * 7, b"end"]
    assert members([file], "resumed")[0]["refused"] == len(failing)
    assert verified([file]).is_intact


async def test_closing_writes_the_buffer_if_the_disk_has_space_again(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        with full_disk(*files(tmp_path)), pytest.raises(AuditUnavailable):
            await trail.append(_event(Operation.DELETE, 1))
    assert [(event["operation"], event["late"]) for event in members(files(tmp_path))] == [("delete", True)]
    report = verified(files(tmp_path))
    assert (report.findings, report.notes) == ([], [])


async def test_a_retried_event_states_the_omitted_refusals_before_it(tmp_path: Path) -> None:
    async with opened_trail(tmp_path) as trail:
        refusals = [an_event(number, outcome=Unauthenticated.code, caller=WITHOUT_KEY) for number in range(500)]
        await asyncio.gather(*map(trail.append, refusals))
        with full_disk(*files(tmp_path)), pytest.raises(AuditUnavailable):
            await trail.append(an_event(1))
    *written, last = members(files(tmp_path))
    assert {event["outcome"] for event in written} == {"unauthenticated"}
    assert (last["late"], last["omitted"]) == (True, 500 - len(written))


def test_ten_thousand_events_fit_and_an_invalid_one_takes_no_space() -> None:
    buffer = RetryBuffer()
    assert not buffer.add(0, an_event()._replace(scheme=b"not text"), 0)  # type: ignore[arg-type]  # it must not be valid
    event = an_event(1)
    assert sum(buffer.add(0, event, 0) for _ in range(MAXIMUM_RETRIED + 5)) == MAXIMUM_RETRIED == len(buffer) == 10_000


async def test_events_that_do_not_fit_are_counted_with_their_omitted(tmp_path: Path) -> None:
    event = an_event(1)
    refusals = [an_event(number, outcome=Unauthenticated.code, caller=WITHOUT_KEY) for number in range(50)]
    async with opened_trail(tmp_path, retry_seconds=3600) as trail:  # retried only when the trail closes
        with full_disk(*files(tmp_path)):
            filling = (trail.append(event) for _ in range(MAXIMUM_RETRIED))
            assert set(map(type, await asyncio.gather(*filling, return_exceptions=True))) == {AuditUnavailable}
            await asyncio.gather(*map(trail.append, refusals), return_exceptions=True)
            await asyncio.gather(*(trail.append(event) for _ in range(100)), return_exceptions=True)
    events = members(files(tmp_path))
    assert sum(event.get("late", False) for event in events) == len(events) == MAXIMUM_RETRIED
    [resumed] = members(files(tmp_path), "resumed")
    [end] = members(files(tmp_path), "end")
    assert (resumed["refused"], end["omitted"]) == (MAXIMUM_RETRIED + 10 + 100, 40)
    assert verified(files(tmp_path)).is_intact
