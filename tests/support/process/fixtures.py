"""Stores as they are before a sweep, or a command that counts, comes by."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.support.process.server import Serve, serving
from tests.support.rewrap.stored_rows import Rows, SqliteRows, SupabaseRows
from tests.support.stack.reaper import Reaper


@pytest.fixture(params=["sqlite", "supabase"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    """An empty store, past the vault; a test that asks for it runs once on each."""
    if request.param == "sqlite":
        return SqliteRows(tmp_path / "vault.db")
    return SupabaseRows(request.getfixturevalue("supabase"))


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteRows:
    """Where a test's claim does not depend on the store."""
    return SqliteRows(tmp_path / "vault.db")


@pytest.fixture(scope="session")
def serve(stack_reaper: Reaper) -> Serve:
    """Start servers that end with their `with` block, or with this run however it ends."""
    return partial(serving, reaper=stack_reaper)
