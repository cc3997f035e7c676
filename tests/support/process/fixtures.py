"""Fixtures: stores with rows, and servers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import pytest

from tests.support.process.server import Serve, serving
from tests.support.rewrap.stored_rows import PostgresRows, Rows, SqliteRows, SupabaseRows
from tests.support.sizes import SOAK
from tests.support.stack.reaper import Reaper

# on PostgreSQL only in `make soak`: tests/rewrap/test_histories.py runs sweeps on it too
ROWS_ON_EVERY_STORE: Final = pytest.mark.parametrize(
    "rows", ["sqlite", "supabase", *(["postgres"] if SOAK else [])], indirect=True
)


@pytest.fixture(params=["sqlite", "supabase"])
def rows(request: pytest.FixtureRequest, tmp_path: Path) -> Rows:
    """Direct access to an empty store; the test runs once on SQLite and once on Supabase.

    Tests of what a sweep does on a store are parametrised with `ROWS_ON_EVERY_STORE`.
    """
    if request.param == "sqlite":
        return SqliteRows(tmp_path / "vault.db")
    kind = PostgresRows if request.param == "postgres" else SupabaseRows
    return kind(request.getfixturevalue("supabase"))


@pytest.fixture
def sqlite(tmp_path: Path) -> SqliteRows:
    """Direct access to an empty SQLite store, for claims that do not depend on the store."""
    return SqliteRows(tmp_path / "vault.db")


@pytest.fixture(scope="session")
def serve(stack_reaper: Reaper) -> Serve:
    """Start servers that end with their `with` block, or with the test run."""
    return partial(serving, reaper=stack_reaper)
