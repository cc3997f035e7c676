"""Whatever a database does between two calls, each secret is revealed where it was stored or not at all.

And what it has not written works: it can destroy, and neither deceive nor block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from app.stores.sqlite.database import prepare_database
from tests.support.malicious_database.encryption import encryption_services
from tests.support.malicious_database.machine import MaliciousDatabase, World
from tests.support.malicious_database.tables import PostgresTable, SqliteTable, Table
from tests.support.sizes import SOAK, size
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture
def sqlite_table(tmp_path: Path) -> tuple[Store, Table]:
    path = tmp_path / "vault.db"
    prepare_database(path)
    return SqliteStore(path), SqliteTable(path)


@pytest.fixture
def server_table(request: pytest.FixtureRequest, supabase: SupabaseStack) -> Iterator[tuple[Store, Table]]:
    with supabase.postgres.connect(supabase.database.name) as database:
        yield request.param(supabase), PostgresTable(database)


def _run(
    runner: asyncio.Runner, attacked: tuple[Store, Table], *, legacy: bool, examples: int, forgets: str | None = None
) -> None:
    store, table = attacked
    opened = store.open()
    tokens = runner.run(opened.__aenter__())
    services = encryption_services(legacy=legacy, forgets=forgets)
    world = World(runner=runner, tokens=tokens, table=table, services=services, legacy=legacy)
    planted = forgets is not None
    try:
        run_state_machine_as_test(
            type("ThisDatabase", (MaliciousDatabase,), {"world": world}),
            settings=settings(
                max_examples=examples,
                stateful_step_count=25,
                deadline=None,
                database=None,
                print_blob=False,
                report_multiple_bugs=False,
                derandomize=planted,  # the planted bug is found in each run or in none
                phases=[Phase.generate] if planted else [Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        runner.run(opened.__aexit__(None, None, None))


def test_no_secret_is_revealed_elsewhere_without_old_formats(
    runner: asyncio.Runner, sqlite_table: tuple[Store, Table]
) -> None:
    _run(runner, sqlite_table, legacy=False, examples=size(16, 600))


def test_with_old_formats_only_old_secrets_move_within_their_user(
    runner: asyncio.Runner, sqlite_table: tuple[Store, Table]
) -> None:
    _run(runner, sqlite_table, legacy=True, examples=size(16, 600))


@pytest.mark.parametrize(
    ("server_table", "legacy"),
    [
        (PostgresStore, False),
        (SupabaseStore, True),
        *([(PostgresStore, True), (SupabaseStore, False)] if SOAK else []),
    ],
    indirect=["server_table"],
)
def test_the_same_holds_on_postgresql(runner: asyncio.Runner, server_table: tuple[Store, Table], legacy: bool) -> None:
    _run(runner, server_table, legacy=legacy, examples=size(2, 100))


@pytest.mark.parametrize("member", ["user_id", "base_url", *(["provider", "service_type", "field"] if SOAK else [])])
def test_a_context_that_lacks_one_member_is_found(
    runner: asyncio.Runner, sqlite_table: tuple[Store, Table], member: str
) -> None:
    """The bug is planted: a ciphertext that is not bound to this member."""
    with pytest.raises(AssertionError, match=r"a secret is revealed elsewhere|a new secret follows an edited URL"):
        _run(runner, sqlite_table, legacy=False, examples=400, forgets=member)
