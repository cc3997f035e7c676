"""Fixtures of PostgreSQL and Supabase."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.support.stack.postgres import Database, Postgres, running_postgres
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import SupabaseStack, running_supabase


@pytest.fixture(scope="session")
def stack_reaper() -> Iterator[Reaper]:
    """Stops the session's processes if the session itself is killed."""
    with closing(Reaper()) as reaper:
        yield reaper


@pytest.fixture(scope="session")
def postgres(stack_reaper: Reaper) -> Iterator[Postgres]:
    """One PostgreSQL server for the session."""
    with running_postgres(reaper=stack_reaper) as server:
        yield server


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[Database]:
    """A new database with Supabase's roles and nothing else."""
    with postgres.new_database() as database:
        yield database


@pytest.fixture(scope="session")
def supabase_stack(postgres: Postgres, stack_reaper: Reaper) -> Iterator[SupabaseStack]:
    """One Supabase project for the session. Tests use `supabase`, which is reset first."""
    with running_supabase(postgres=postgres, reaper=stack_reaper) as stack:
        yield stack


@pytest.fixture
def supabase(supabase_stack: SupabaseStack) -> Iterator[SupabaseStack]:
    """The session's Supabase project: running, without tokens and faults."""
    supabase_stack.reset()
    yield supabase_stack
    supabase_stack.faults.reset()  # the next test may use a module's own service, which resets nothing
    supabase_stack.start_postgrest()
