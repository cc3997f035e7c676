"""Repeated refusals leave a few events, and the number of the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from app.audit.refusal_limiter import RefusalLimiter
from app.errors import Unauthenticated
from app.observability.in_memory_counters import InMemoryAuditCounters
from app.tokens.models import Caller
from tests.support.audit.trails import WITHOUT_KEY, an_event, append_all, files, members, opened_trail

ONE, OTHER = Caller("one", "a-request", "0" * 12), Caller("other", "a-request", "1" * 12)


async def test_callers_without_a_key_leave_ten_events_a_second(tmp_path: Path) -> None:
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, counters=counters) as trail:
        refusals = [an_event(number, outcome=Unauthenticated.code, caller=WITHOUT_KEY) for number in range(1_000)]
        await append_all(trail, refusals)
        await trail.append(an_event(1))
        await append_all(trail, refusals[:20])
    events = members(files(tmp_path))
    [end] = members(files(tmp_path), "end")
    written = [event for event in events if event["outcome"] == "unauthenticated"]
    assert 10 <= len(written) < 1_000  # ten for each second that this took
    omitted = sum(event.get("omitted", 0) for event in events) + end["omitted"]
    assert len(written) + omitted == 1_020
    assert counters.counts["omitted"] == omitted
    assert {(event["service"], event["key"]) for event in written} == {(None, None)}


async def test_each_service_has_its_own_share_of_refusals(tmp_path: Path) -> None:
    refused = ("rate_limited", "forbidden", "invalid_request", "malformed_body", "body_too_large")
    counters = InMemoryAuditCounters()
    async with opened_trail(tmp_path, counters=counters) as trail:
        await append_all(trail, [an_event(outcome=code, caller=ONE) for code in refused for _ in range(500)])
        await append_all(trail, [an_event(outcome=code, caller=OTHER) for code in refused])
        await append_all(trail, [an_event(outcome="token_not_found", caller=ONE) for _ in range(500)])
    events = members(files(tmp_path))
    written = Counter((event["service"], event["outcome"]) for event in events)
    assert 10 <= written["one", "rate_limited"] < 500
    assert 100 <= sum(written["one", code] for code in refused[1:]) < 2_000
    assert [written["other", code] for code in refused] == [1] * 5
    assert written["one", "token_not_found"] == 500
    omitted = sum(event.get("omitted", 0) for event in events)
    assert len(events) + omitted == 5 * 500 + 5 + 500
    assert counters.counts["omitted"] == omitted


def test_the_limits_start_again_every_second() -> None:
    clock = [0.0]
    limiter = RefusalLimiter(monotonic=lambda: clock[0])

    def admitted(outcome: str, caller: Caller) -> int:
        return sum(limiter.admits(an_event(outcome=outcome, caller=caller)) for _ in range(150))

    for clock[0] in (0.0, 1.0, 2.5):
        assert [admitted("rate_limited", caller) for caller in (ONE, OTHER)] == [10, 10]
        assert [admitted(code, ONE) for code in ("forbidden", "invalid_request", "body_too_large")] == [100, 0, 0]
        assert admitted("malformed_body", OTHER) == 100
        assert admitted("unauthenticated", WITHOUT_KEY) == 10
        assert admitted("store_timeout", ONE) == admitted("success", ONE) == 150
        assert limiter.take_omitted() == 2 * 140 + 50 + 150 + 150 + 50 + 140
        assert limiter.take_omitted() == 0
