"""Events that `audit show` selects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.audit.reader import EventFilter, search_events
from app.audit.signing_key import AuditKey
from tests.support.audit.trails import KEY, OTHER_KEY, keep

NOW = datetime.now(UTC)


@pytest.mark.parametrize(
    ("member", "value", "found"),
    [
        ("user", "00000000-0000-0000-0000-000000000001", 1),
        ("user", "00000000-0000-0000-0000-000000000009", 0),
        ("service", "tests", 3),
        ("service", "x", 0),
        ("operation", "reveal", 3),
        ("operation", "store", 0),
        ("outcome", "success", 3),
        ("outcome", "x", 0),
        ("since", NOW - timedelta(days=1), 3),
        ("since", NOW + timedelta(days=1), 0),
    ],
)
def test_each_member_of_a_filter_selects_events(tmp_path: Path, member: str, value: Any, found: int) -> None:
    wanted = EventFilter(**{member: value})
    assert len(search_events(keep(tmp_path, 3), wanted, keys=[KEY]).events) == found


@pytest.mark.parametrize(
    ("keys", "genuine"),
    [([KEY], True), ([OTHER_KEY], False), ([OTHER_KEY, KEY], True), ([], None)],
    ids=["its-key", "another-key", "an-earlier-key", "no-key"],
)
def test_an_event_is_genuine_only_with_its_key(tmp_path: Path, keys: list[AuditKey], genuine: bool | None) -> None:
    [event] = search_events(keep(tmp_path, 1), EventFilter(), keys=keys).events
    assert event.genuine is genuine
