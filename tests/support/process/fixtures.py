"""Fixtures: stores with rows, and servers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.process.server import Serve, serving
from tests.support.rewrap.stored_rows import Rows, SqliteRows, SupabaseRows
from tests.support.stack.reaper import Reaper


@pytest.fixture(params=["sqlite", "supabase"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    """Direct access to an empty store; the test runs once on SQLite and once on Supabase."""
    if request.param == "sqlite":
        return SqliteRows(tmp_path / "vault.db")
    return SupabaseRows(request.getfixturevalue("supabase"))


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteRows:
    """Direct access to an empty SQLite store, for claims that do not depend on the store."""
    return SqliteRows(tmp_path / "vault.db")


@pytest.fixture(scope="session")
def serve(stack_reaper: Reaper) -> Serve:
    """Start servers that end with their `with` block, or with the test run."""
    return partial(serving, reaper=stack_reaper)
