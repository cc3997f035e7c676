"""Attempts that were made when their record failed are in the record once it goes on."""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from app.audit.retry_buffer import MAXIMUM_LATE, RetryBuffer
from app.audit.trail import AuditLog
from app.errors import AuditUnavailable, Unauthenticated
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller
from tests.support.audit.trails import KEY_TEXT, an_event, files, keep, members, opened_trail, verified
from tests.support.process.home import new_home
from tests.support.process.server import Serve
from tests.support.process.wire import token_path

RECOVERY_SECONDS = 5.0
NOBODY = Caller("", "a-request", address="192.0.2.9")


@contextmanager
def _full_disk(folder: Path) -> Iterator[None]:
    """No room for another line in the newest file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (files(folder)[-1].stat().st_size + 300, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def _recovers(trail: AuditLog) -> None:
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                await trail.check()
            except AuditUnavailable:
                await asyncio.sleep(0.02)
            else:
                return


def _made(operation: Operation, number: int, outcome: str = "success") -> TokenEvent:
    return replace(an_event(number, outcome=outcome), operation=operation, revealed=())


async def test_what_was_made_follows_in_its_order_and_says_that_nothing_has_left(tmp_path: Path) -> None:
    attempts = [
        _made(Operation.DELETE, 1),
        an_event(2),
        _made(Operation.LIST, 3),
        _made(Operation.STORE, 4),
        an_event(5, outcome="token_not_found"),
        _made(Operation.ROTATE, 6, "version_conflict"),
    ]
    async with opened_trail(tmp_path, retry_seconds=0.05) as trail:
        await trail.append(an_event(0))
        with _full_disk(tmp_path):
            outcomes = await asyncio.gather(*map(trail.append, attempts), return_exceptions=True)
        assert {type(one) for one in outcomes} == {AuditUnavailable}
        await _recovers(trail)
        await trail.append(an_event(7))
    [file] = files(tmp_path)
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
    assert members([file], "resumed")[0]["refused"] == len(attempts)
    assert verified([file]).is_whole


async def test_what_waits_at_the_end_is_written_where_there_is_room_again(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, retry_seconds=0.05) as trail:
        with _full_disk(tmp_path), pytest.raises(AuditUnavailable):
            await trail.append(_made(Operation.DELETE, 1))
    assert [(event["operation"], event["late"]) for event in members(files(tmp_path))] == [("delete", True)]
    report = verified(files(tmp_path))
    assert (report.findings, report.notes) == ([], [])


async def test_the_number_of_those_left_out_is_not_lost_where_its_event_is_late(tmp_path: Path) -> None:
    async with opened_trail(tmp_path, retry_seconds=0.05) as trail:
        flood = [an_event(number, outcome=Unauthenticated.code, caller=NOBODY) for number in range(500)]
        await asyncio.gather(*map(trail.append, flood))
        with _full_disk(tmp_path), pytest.raises(AuditUnavailable):
            await trail.append(an_event(1))
    *written, last = members(files(tmp_path))
    assert {event["outcome"] for event in written} == {"unauthenticated"}
    assert (last["late"], last["omitted"]) == (True, 500 - len(written))


def test_ten_thousand_wait_and_no_more_and_one_that_cannot_be_said_takes_no_place() -> None:
    late = RetryBuffer()
    assert not late.add(0, replace(an_event(), scheme=b"no text"), 0)  # type: ignore[arg-type]  # what no event can be is the point
    assert sum(late.add(0, an_event(1), 0) for _ in range(MAXIMUM_LATE + 5)) == MAXIMUM_LATE == len(late) == 10_000


async def test_what_finds_no_place_is_counted_and_gives_back_what_it_had_to_say(tmp_path: Path) -> None:
    many = 10_100
    async with opened_trail(tmp_path, bound_seconds=30, retry_seconds=0.5) as trail:
        flood = [an_event(number, outcome=Unauthenticated.code, caller=NOBODY) for number in range(50)]
        with _full_disk(tmp_path):
            first = await asyncio.gather(*(trail.append(an_event(n)) for n in range(9_999)), return_exceptions=True)
            assert {type(one) for one in first} == {AuditUnavailable}
            await asyncio.gather(*map(trail.append, flood), return_exceptions=True)
            await asyncio.gather(*(trail.append(an_event(n)) for n in range(many - 9_999)), return_exceptions=True)
        await _recovers(trail)
        await trail.append(an_event(1))
    events = members(files(tmp_path))
    assert sum(event.get("late", False) for event in events) == MAXIMUM_LATE
    assert sum(resumed["refused"] for resumed in members(files(tmp_path), "resumed")) >= many
    assert sum(event.get("omitted", 0) for event in events) == 40
    assert verified(files(tmp_path)).is_whole


def test_a_delete_that_was_answered_503_is_in_the_record_after_all(tmp_path: Path, serve: Serve) -> None:
    """The disk is a limit on file sizes that the audit file has reached and the database has not."""
    home = new_home(tmp_path, AUDIT_LOG="audit/audit.jsonl", AUDIT_KEY=KEY_TEXT, AUDIT_SYNC="always")
    with serve(home) as server, server.client() as client:
        user_id = str(uuid4())
        path = token_path(user_id)
        assert client.put(path, json={"access_token": "canary-secret"}).status_code == 201
        [file] = files(tmp_path / "audit")
        while file.stat().st_size < 200_000:
            client.post("/v1/tokens/batch-get", json={"tokens": [{"user_id": user_id, "provider": "canvas"}] * 100})
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + 50, hard))
        answer = client.delete(path)
        assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + RECOVERY_SECONDS
        while client.get(path).status_code == 503:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert client.get(path).status_code == 404
        [deleted] = [event for event in members([file]) if event["operation"] == "delete"]
        assert (deleted["outcome"], deleted["late"]) == ("success", True)
        assert deleted["request_id"] == answer.headers["x-request-id"]
        server.stop()
    keep(tmp_path / "audit", 0)
    assert verified(files(tmp_path / "audit")).is_whole
