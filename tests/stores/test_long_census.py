"""The census may take minutes, longer than any other call: the table has millions of rows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.config.database.supabase import READ_SECONDS
from app.errors import StoreTimeout
from app.rewrap.sweep import SweepPlan
from app.tokens.census import Census, CensusRow
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault
from tests.support.rewrap.command import rewrap, without_progress
from tests.support.rewrap.stored_rows import Row, SupabaseRows, broken_rows, key_settings, local_encryption, sealed_row
from tests.support.rewrap.sweeps import Observed, all_rewrapped, counts, sweep
from tests.support.stack.gateway_faults import Request
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SupabaseStore
from tests.support.waiting import eventually_async


def _rows_under_the_first_key(count: int) -> list[Row]:
    return [sealed_row(local_encryption(1)) for _ in range(count)]


def _is_census(request: Request) -> bool:
    return "token_vault_census" in request.target


@pytest.fixture
def short_statement_timeout(supabase: SupabaseStack) -> Iterator[SupabaseStack]:
    """Limit every statement of the vault's role to 200 ms; the census sets its own limit."""
    supabase.sql("alter role token_vault set statement_timeout = '200ms'")
    supabase.sql("notify pgrst, 'reload config'")
    yield supabase
    supabase.sql("alter role token_vault reset statement_timeout")
    supabase.sql("notify pgrst, 'reload config'")


async def test_the_roles_statement_timeout_does_not_cut_the_census(short_statement_timeout: SupabaseStack) -> None:
    supabase = short_statement_timeout
    SupabaseRows(supabase).insert(_rows_under_the_first_key(3))
    async with SupabaseStore(supabase).open() as tokens:
        with supabase.postgres.connect(supabase.database.name) as other, other.connection.transaction():
            other.sql("lock table public.oauth_tokens in access exclusive mode")
            async with asyncio.timeout(60):
                while not await _is_cut(tokens):  # until PostgREST applies the role's setting
                    pass
            counting = asyncio.create_task(tokens.census())
            await eventually_async(lambda: _census_runs_for_half_a_second(supabase))
            assert not counting.done()
        assert await counting == [CensusRow("local:v1", (), 3)]


async def _is_cut(tokens: TokenRepository) -> bool:
    try:
        await asyncio.wait_for(tokens.page("local:v1", after=None, limit=1), READ_SECONDS / 2)
    except StoreTimeout:
        return True
    except TimeoutError:
        pass
    return False


def _census_runs_for_half_a_second(supabase: SupabaseStack) -> bool:
    """Look at the server, past any transaction's snapshot."""
    found = supabase.sql(
        "select pid from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()"
        " and query like '%token_vault_census%' and clock_timestamp() - query_start > interval '500 ms'"
    )
    return found != []


def test_the_command_gives_the_census_more_time_than_a_read(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_rows_under_the_first_key(5))
    supabase.faults.delay(before=READ_SECONDS + 0.3, times=1, when=_is_census)
    done = rewrap(folder=tmp_path, settings=rows.settings() | key_settings(2, 1))
    assert (done.exit_code, without_progress(done.stderr)) == (0, "")
    assert done.counts == all_rewrapped(5)


async def test_a_sweep_without_a_census_rewraps_all_and_reports_no_count(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert([*_rows_under_the_first_key(30), *broken_rows().values()])
    supabase.faults.answer(504, when=_is_census)
    observed = Observed()
    async with SupabaseStore(supabase).open() as tokens:
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    assert counts(report) == {**all_rewrapped(30), "due": None, "unreadable": 4, "remaining": None}
    assert report.stopped is None
    assert "store_timeout" not in observed.waits, "the census is not retried"
    assert rows.count("local:v2") == 30


async def test_a_sweep_without_a_census_takes_rows_written_during_it(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_rows_under_the_first_key(5))
    supabase.faults.answer(504, when=_is_census)
    observed = Observed()
    late = _rows_under_the_first_key(1)
    observed.on_progress = lambda report: rows.insert([late.pop()]) if report.rewrapped and late else None
    async with SupabaseStore(supabase).open() as tokens:
        report = await sweep(tokens, local_encryption(2), observed=observed).run()
    assert (report.rewrapped, rows.count("local:v2")) == (6, 6)


def test_the_command_is_not_finished_without_a_census(supabase: SupabaseStack, tmp_path: Path) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(_rows_under_the_first_key(5))
    supabase.faults.answer(504, when=_is_census)
    done = rewrap(folder=tmp_path, settings=rows.settings() | key_settings(2, 1))
    assert (done.exit_code, done.counts["rewrapped"], done.counts["remaining"]) == (2, 5, None)
    assert done.verdict.startswith("Not finished: the rows could not be counted.")


async def test_stopping_a_sweep_does_not_wait_for_the_census(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(_rows_under_the_first_key(5))
    supabase.faults.delay(before=120, times=1, when=_is_census)
    async with SupabaseStore(supabase).open() as tokens, asyncio.timeout(60):
        report = await sweep(tokens, local_encryption(2), plan=SweepPlan(deadline_seconds=0.2)).run()
    assert (report.stopped, report.due, report.remaining) == ("its time was over", None, 5)


async def test_callers_time_out_and_share_one_census(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(_rows_under_the_first_key(5))
    supabase.faults.delay(before=3, when=_is_census)  # the second caller must come before it ends
    async with SupabaseStore(supabase).open() as tokens:
        cipher = TokenCipher(encryption=local_encryption(2))
        vault = TokenVault(tokens=tokens, cipher=cipher, events=TokenEvents(audit=NoAuditTrail()), deadline_seconds=0.4)
        with supabase.recording() as requests, pytest.raises(StoreTimeout, match="could not be counted in time"):
            await vault.census()
        with supabase.recording() as later_requests:
            census = await _census_when_done(vault)
    assert census.rows == census.due == 5
    assert (len(requests), len(later_requests)) == (1, 0), "later callers wait for the census that already runs"


async def _census_when_done(vault: TokenVault) -> Census:
    async with asyncio.timeout(60):
        while True:
            try:
                return await vault.census()
            except StoreTimeout:
                continue
