"""Every store, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.stores.stores import SqliteStore, Store, SupabaseStore


@pytest.fixture(params=["sqlite", "supabase"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """An empty store; a test that asks for it runs once on each."""
    if request.param == "sqlite":
        return SqliteStore(tmp_path / "vault.db")
    return SupabaseStore(request.getfixturevalue("supabase"))
