"""A count that takes longer than everything else may: the table has millions of rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config.database.supabase import READ_SECONDS
from app.errors import StoreTimeout
from app.rewrap.sweep import SweepPlan
from app.tokens.census import CensusRow
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.vault import TokenVault
from tests.support.rewrap.command import ended, rewrap, started
from tests.support.rewrap.stored_rows import Row, SupabaseRows, broken_rows, key_settings, local_encryption, sealed_row
from tests.support.rewrap.sweeps import Observed, all_rewrapped, counts, sweep
from tests.support.stack.gateway_faults import Request
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore


def _under_first(count: int) -> list[Row]:
    return [sealed_row(local_encryption(1)) for _ in range(count)]


def _census(request: Request) -> bool:
    return "token_vault_census" in request.target


@pytest.fixture
def hasty_role(supabase: SupabaseStack) -> Iterator[SupabaseStack]:
    """Let every statement but the census take 200 ms."""
    supabase.sql("alter role service_role set statement_timeout = '200ms'")
    supabase.sql("notify pgrst, 'reload config'")
    yield supabase
    supabase.sql("alter role service_role reset statement_timeout")
    supabase.sql("notify pgrst, 'reload config'")


async def test_a_roles_statement_timeout_does_not_cut_it(hasty_role: SupabaseStack) -> None:
    SupabaseRows(hasty_role).insert(_under_first(3))
    async with SupabaseStore(hasty_role).open() as tokens:
        with hasty_role.postgres.connect(hasty_role.database.name) as other, other.connection.transaction():
            other.sql("lock table public.oauth_tokens in access exclusive mode")
            await asyncio.sleep(0.5)  # PostgREST takes the role's setting up
            with pytest.raises(StoreTimeout):
                await asyncio.wait_for(tokens.page("local:v1", after=None, limit=1), 1)
            counting = asyncio.create_task(tokens.census())
            await asyncio.sleep(0.6)
            assert not counting.done()
        assert await counting == [CensusRow("local:v1", (), 3)]


def test_the_command_waits_for_it_longer_than_for_anything_else(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_under_first(5))
    supabase.faults.delay(before=READ_SECONDS + 0.3, times=1, when=_census)
    done = rewrap(folder=tmp_path, settings=rows.settings() | key_settings(2, 1))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.counts == all_rewrapped(5)


async def test_a_sweep_moves_what_nobody_can_count_and_says_that_it_is_not_counted(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert([*_under_first(30), *broken_rows().values()])
    supabase.faults.answer(504, when=_census)
    observed = Observed()
    async with SupabaseStore(supabase).open() as tokens:
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    assert counts(report) == {**all_rewrapped(30), "due": None, "unreadable": 4, "remaining": None}
    assert (report.stopped, observed.waits) == (None, [])
    assert rows.count("local:v2") == 30


async def test_rows_that_others_write_meanwhile_are_moved_without_a_count_too(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_under_first(5))
    supabase.faults.answer(504, when=_census)
    observed = Observed()
    late = _under_first(1)
    observed.on_progress = lambda report: rows.insert([late.pop()]) if report.rewrapped and late else None
    async with SupabaseStore(supabase).open() as tokens:
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    assert (report.rewrapped, rows.count("local:v2")) == (6, 6)


def test_the_command_does_not_call_it_done_without_a_count(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_under_first(5))
    supabase.faults.answer(504, when=_census)
    done = ended(started(folder=tmp_path, settings=rows.settings() | key_settings(2, 1)))
    assert (done.exit_code, done.counts["rewrapped"], done.counts["remaining"]) == (2, 5, None)
    assert done.verdict.startswith("Not finished: the rows could not be counted.")


async def test_a_stop_does_not_wait_for_it(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(_under_first(5))
    supabase.faults.delay(before=1.0, times=1, when=_census)
    async with SupabaseStore(supabase).open() as tokens:
        began = time.monotonic()
        report = await sweep(tokens, local_encryption(2), plan=SweepPlan(deadline_seconds=0.2)).run()
    assert time.monotonic() - began < 0.9
    assert (report.stopped, report.due, report.remaining) == ("its time was over", None, 5)


async def test_callers_of_the_service_are_told_in_time_and_share_one_count(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(_under_first(5))
    asked: list[str] = []

    def noted(request: Request) -> bool:
        asked.append(request.target)
        return _census(request)

    supabase.faults.delay(before=0.7, when=noted)
    async with SupabaseStore(supabase).open() as tokens:
        cipher = TokenCipher(encryption=local_encryption(2))
        vault = TokenVault(tokens=tokens, cipher=cipher, events=TokenEvents(audit=NoAuditTrail()), deadline_seconds=0.4)
        with pytest.raises(StoreTimeout, match="could not be counted in time"):
            await vault.census()
        census = await vault.census()
    assert census.rows == census.due == 5
    assert len(asked) == 1, "whoever asks again does not begin another scan"
