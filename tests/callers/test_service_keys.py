"""The list of service keys: read strictly, edited without side effects."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.callers.service_key_file import add_key, read_key_file
from app.callers.service_keys import KeyListError, Scope, ServiceKey, parse_key_list

HASH = "0" * 64
ENTRY = {"service": "api", "sha256": HASH, "scopes": ["tokens:read"]}


@pytest.mark.parametrize(
    "text",
    [
        f'[{{"service": "api", "sha256": "{HASH}", "scopes": ["tokens:read"], "scopes": ["tokens:admin"]}}]',
        json.dumps([{**ENTRY, "ptv_CANARY": 1}]),
        json.dumps([{**ENTRY, "sha256": "CANARY"}]),
        json.dumps([{**ENTRY, "scopes": []}]),
        json.dumps([{**ENTRY, "expires_at": "2027-01-01T00:00:00"}]),
        json.dumps([ENTRY, ENTRY]),
        json.dumps(ENTRY),
        "[" * 100_000,
        "CANARY",
    ],
    ids=lambda text: text[:24],
)
def test_an_invalid_list_is_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(KeyListError) as caught:
        parse_key_list(text)
    assert "CANARY" not in str(caught.value)


def test_an_edit_keeps_the_link_and_the_mode(tmp_path: Path) -> None:
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text(json.dumps([ENTRY]))
    real.chmod(0o640)
    link.symlink_to(real)
    add_key(link, ServiceKey(service="jobs", sha256="1" * 64, scopes=frozenset({Scope.REVEAL})))
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert [key.service for key in read_key_file(link)] == ["api", "jobs"]
