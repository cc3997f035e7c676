"""Authentication by key: the same steps for every refused key."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

import pytest

from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key
from app.errors import Unauthenticated

LIVE, EXPIRED = generate_key(), generate_key()
TOMORROW, YESTERDAY = (datetime.now(UTC) + timedelta(days=days) for days in (1, -1))
KEYS = ServiceKeyDirectory(
    fixed=[
        ServiceKey(service="live", sha256=hash_key(LIVE), scopes=frozenset(Scope), expires_at=TOMORROW),
        ServiceKey(service="expired", sha256=hash_key(EXPIRED), scopes=frozenset(Scope), expires_at=YESTERDAY),
    ]
)
REFUSED = {
    "unknown": generate_key(),
    "expired": EXPIRED,
    "malformed, of the same length": "ptv_" + "*" * 43,
    "a live one with its last character changed": LIVE[:-1] + "*",
    "another prefix": LIVE.replace("ptv_", "xyz_"),
}


def _steps(presented: str) -> list[str]:
    """Return every call that is made on the way to the answer."""
    steps: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            steps.append(frame.f_code.co_qualname)
        elif event == "c_call":
            steps.append(argument.__qualname__)

    sys.setprofile(note)
    try:
        KEYS.identify(presented)
    except Unauthenticated:
        pass
    finally:
        sys.setprofile(None)
    return steps


def _until_the_decision(presented: str) -> list[str]:
    steps = _steps(presented)
    return steps[: steps.index("is_well_formed") + 2]


@pytest.mark.parametrize("kind", REFUSED)
def test_every_key_takes_the_same_steps_up_to_the_decision(kind: str) -> None:
    with pytest.raises(Unauthenticated):
        KEYS.identify(REFUSED[kind])
    steps = _until_the_decision(REFUSED[kind])
    assert steps == _until_the_decision(LIVE)
    assert {"hash_key", "compare_digest", "ServiceKey.is_alive"} <= set(steps)


def test_the_placeholder_entry_matches_no_key() -> None:
    assert KEYS.identify(LIVE).service == "live"
    assert hash_key("") != "0" * 64
    with pytest.raises(Unauthenticated):
        KEYS.identify("0" * 64)


@pytest.mark.parametrize("presented", ["", "ptv_", "\u00e9" * 47, "x" * 32_000, "ptv_" + "\u0661" * 43])
def test_a_malformed_key_is_refused(presented: str) -> None:
    with pytest.raises(Unauthenticated, match="malformed"):
        KEYS.identify(presented)
