"""Authentication by key: the same steps for every refused key."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_key_file import add_key
from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key, render_key_list
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


def _steps(presented: str, keys: ServiceKeyDirectory = KEYS) -> list[str]:
    """Return every call that is made on the way to the answer."""
    steps: list[str] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            steps.append(frame.f_code.co_qualname)
        elif event == "c_call":
            steps.append(argument.__qualname__)

    sys.setprofile(note)
    try:
        keys.identify(presented)
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


@pytest.mark.parametrize("strict_in_file", [True, False])
def test_a_key_in_both_lists_may_do_what_both_entries_permit(tmp_path: Path, strict_in_file: bool) -> None:
    lax = ServiceKey(service="both", sha256=hash_key(LIVE), scopes=frozenset(Scope))
    strict = replace(
        lax,
        scopes=frozenset({Scope.REVEAL}),
        providers=frozenset({"canvas"}),
        expires_at=TOMORROW,
        on_behalf_of="required",
    )
    file = tmp_path / "service-keys.json"
    file.write_text(render_key_list([strict if strict_in_file else lax]))
    file.chmod(0o600)
    directory = ServiceKeyDirectory(fixed=[lax if strict_in_file else strict], file=file)
    assert directory.identify(LIVE) == strict
    assert directory.problem is None


def test_entries_of_one_key_that_agree_in_nothing_permit_nothing(tmp_path: Path) -> None:
    first = ServiceKey(
        service="first", sha256=hash_key(LIVE), scopes=frozenset({Scope.READ}), providers=frozenset({"canvas"})
    )
    second = replace(first, service="second", scopes=frozenset({Scope.REVEAL}), providers=frozenset({"google"}))
    file = tmp_path / "service-keys.json"
    file.write_text(render_key_list([second]))
    file.chmod(0o600)
    key = ServiceKeyDirectory(fixed=[first], file=file).identify(LIVE)
    assert (key.service, key.scopes, key.providers) == ("first", frozenset(), frozenset())


def test_a_file_that_comes_back_unchanged_is_accepted_again(tmp_path: Path) -> None:
    """The folder of the file was away for a moment, as a volume or a network file system may be."""
    folder = tmp_path / "keys"
    folder.mkdir()
    file = folder / "service-keys.json"
    file.write_text(render_key_list([ServiceKey(service="live", sha256=hash_key(LIVE), scopes=frozenset(Scope))]))
    file.chmod(0o600)
    directory = ServiceKeyDirectory(file=file, reload_seconds=0)
    assert directory.identify(LIVE).service == "live"
    folder.rename(tmp_path / "away")
    with pytest.raises(Unauthenticated):
        directory.identify(LIVE)
    (tmp_path / "away").rename(folder)
    assert directory.identify(LIVE).service == "live"
    assert directory.problem is None


def _entry(key: str) -> ServiceKey:
    return ServiceKey(service="one", sha256=hash_key(key), scopes=frozenset(Scope))


def test_a_key_works_from_the_moment_that_its_command_has_ended(tmp_path: Path) -> None:
    file, new = tmp_path / "service-keys.json", generate_key()
    add_key(file, _entry(LIVE))
    directory = ServiceKeyDirectory(file=file, monotonic=lambda: 0.0)  # the next regular look never comes
    assert directory.identify(LIVE).service == "one"
    add_key(file, _entry(new))
    assert directory.identify(new).service == "one"


def test_unknown_keys_do_not_make_the_vault_read_an_unchanged_file(tmp_path: Path) -> None:
    file = tmp_path / "service-keys.json"
    file.write_text("[")
    file.chmod(0o600)
    directory = ServiceKeyDirectory(file=file, monotonic=lambda: 0.0)
    assert directory.problem is not None
    assert "parse_key_list" not in _steps(generate_key(), directory)
    file.write_text(render_key_list([_entry(LIVE)]))
    assert directory.identify(LIVE).service == "one"
    assert "parse_key_list" not in _steps(generate_key(), directory)
