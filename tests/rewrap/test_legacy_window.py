"""ALLOW_LEGACY_FORMATS is compared with the rows: open without need, and closed although rows need it."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from app.rewrap.legacy_window import window_problem
from tests.support.api.service import running_service
from tests.support.rewrap.stored_rows import (
    Rows,
    SqliteRows,
    broken_rows,
    half_legacy_row,
    local_encryption,
    pulseplan_rows,
    row_without_scheme,
    sealed_row,
)
from tests.support.rewrap.sweeps import opened

_WITHOUT_NEED = "ALLOW_LEGACY_FORMATS is true, and no row needs PulsePlan's formats"


@pytest.mark.parametrize(
    ("kind", "needed"),
    [
        ("empty", False),
        ("bound", False),
        ("without a scheme", False),
        ("planted", False),
        ("half", True),
        ("last of many", True),
    ],
)
async def test_the_window_is_compared_with_the_rows(rows: Rows, kind: str, needed: bool) -> None:
    stored = {
        "empty": [],
        "bound": [sealed_row(local_encryption(1))],
        "without a scheme": [row_without_scheme(), broken_rows()["nonsense"]],
        "planted": [pulseplan_rows()[0][0] | {"encryption_scheme": "pulseplan-local:v1"}],
        "half": [row_without_scheme(), half_legacy_row()],
        "last of many": [
            *(row_without_scheme() | {"user_id": str(uuid4())} for _ in range(201)),
            pulseplan_rows()[0][0] | {"id": "ffffffff-ffff-4fff-bfff-ffffffffffff"},
        ],
    }
    rows.insert(stored[kind])
    async with opened(rows) as tokens:
        open_problem = await window_problem(tokens, allowed=True)
        closed_problem = await window_problem(tokens, allowed=False)
    if needed:
        assert open_problem is None
        assert closed_problem is not None
        assert "cannot be read" in closed_problem
    else:
        assert open_problem is not None
        assert open_problem.startswith(_WITHOUT_NEED)
        assert closed_problem is None


@pytest.mark.parametrize(("needed", "allowed"), [(False, True), (True, True), (False, False)])
def test_an_open_window_without_need_is_reported(tmp_path: Path, *, needed: bool, allowed: bool) -> None:
    """At the start, before the first request."""
    rows = SqliteRows(tmp_path / "vault.db")
    rows.insert([sealed_row(local_encryption(1)), *([pulseplan_rows()[0][0]] if needed else [])])
    settings = rows.settings() | {"ALLOW_LEGACY_FORMATS": str(allowed).lower()}
    with running_service(tmp_path, settings) as service:
        lines = [json.loads(line) for line in service.lines()]
    warned = [line for line in lines if line["event"] == "setting_is_weak" and _WITHOUT_NEED in line["reason"]]
    assert len(warned) == (allowed and not needed)
