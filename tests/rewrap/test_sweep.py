"""A sweep rewraps every row whatever breaks, and its counts are those of the database."""

from __future__ import annotations

import asyncio
import gc
import io
import json
import logging
import threading
import tracemalloc
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Final

import pytest

from app.rewrap.report import SweepReport
from app.rewrap.sweep import CONCURRENT_PAGES, PAGE_ROWS, SweepPlan
from tests.support.process.fixtures import ROWS_ON_EVERY_STORE
from tests.support.rewrap.stored_rows import (
    KEYS,
    Rows,
    SqliteRows,
    SupabaseRows,
    access_of,
    broken_rows,
    differences_but_for_encryption,
    encryption,
    key_settings,
    local_encryption,
    refresh_of,
    rows_under_first,
    what_a_row_holds,
)
from tests.support.rewrap.sweeps import (
    Observed,
    all_rewrapped,
    bound_row,
    count_of,
    counts,
    five_schemes,
    kms_settings,
    opened,
    sweep,
    what_it_held,
)
from tests.support.sizes import size
from tests.support.stack.gateway_faults import Request
from tests.support.stack.kms import Kms
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually_async

MANY: Final = size(500, 20_000)
_USER: Final = "-d8f1-4adf-91b7-584a2265b1f5"


# --- everything is rewrapped


@ROWS_ON_EVERY_STORE
async def test_one_sweep_rewraps_five_schemes_and_a_second_does_nothing(kms: Kms, rows: Rows) -> None:
    service = encryption(kms_settings(kms, primary=False))
    under_kms = encryption(kms_settings(kms, primary=True))
    rows.insert(five_schemes(MANY, local=local_encryption(1), kms=under_kms))
    before = rows.rows()
    assert count_of(rows) == {"local:v1": MANY // 5, f"kms:{kms.key_arn}": MANY // 5, None: 3 * MANY // 5}
    async with opened(rows) as tokens:
        report = await sweep(tokens, service).run()
        after = rows.rows()
        again = await sweep(tokens, service).run()
    assert counts(report) == all_rewrapped(MANY)
    assert counts(again) == all_rewrapped(0)
    assert rows.rows() == after
    assert {row["encryption_scheme"] for row in after.values()} == {"local:v2"}
    assert after.keys() == before.keys()
    reader = encryption(key_settings(2))  # with the old keys gone
    wrong = [row_id for row_id, row in after.items() if what_a_row_holds(reader, row) != what_it_held(row_id)]
    assert wrong == []
    assert [name for row_id in after for name in differences_but_for_encryption(before[row_id], after[row_id])] == []
    assert [one["id"] for one in after.values() if not one["refresh_token"] and what_it_held(one["id"])[1]] == []


# --- what breaks


def _every(nth: int, when: Callable[[Request], bool]) -> Callable[[Request], bool]:
    """Choose every nth of these requests, from any thread."""
    lock, seen = threading.Lock(), 0

    def chosen(request: Request) -> bool:
        nonlocal seen
        if not when(request):
            return False
        with lock:
            seen += 1
            return seen % nth == 0

    return chosen


async def test_a_sweep_ends_under_the_new_key_of_an_alias_that_moves(kms: Kms, sqlite: SqliteRows) -> None:
    new, count = kms.create_key(), 2 * PAGE_ROWS
    alias = {"KMS_KEY_ID": kms.alias, "KMS_PREVIOUS_KEY_IDS": json.dumps([kms.key_arn])}
    sqlite.insert(rows_under_first(count))
    written_under_the_old_key: list[int] = []

    def move_alias(report: SweepReport) -> None:
        if report.rewrapped and not written_under_the_old_key:
            written_under_the_old_key.append(report.rewrapped)
            kms.move_alias(kms.alias, new)

    async with opened(sqlite) as tokens:
        service = encryption(kms_settings(kms, primary=True) | alias)
        report = await sweep(tokens, service, observed=Observed(on_progress=move_alias)).run()
    assert written_under_the_old_key
    assert report.remaining == 0
    assert sqlite.count(f"kms:{new}") == count


async def test_counts_are_true_with_lost_answers_capped_pages_and_throttling(kms: Kms, supabase: SupabaseStack) -> None:
    """All faults at once, with unreadable rows in the table, checked by counts in the database."""
    rows = SupabaseRows(supabase)
    under_kms = encryption(kms_settings(kms, primary=True))
    users = 130  # each costs a request to KMS
    made = [*rows_under_first(users), *broken_rows().values()]
    rows.insert(made)
    before = rows.rows()
    observed = Observed()
    async with opened(rows) as tokens:
        with supabase.at_most(60):
            while len(page := await tokens.page("local:v1", after=None, limit=PAGE_ROWS)) > 60:
                pass
            kms.faults.error("ThrottlingException", times=2)  # both attempts of the first request
            kms.faults.error("ThrottlingException", every=10)
            supabase.faults.cut_after_commit(when=_every(3, lambda request: "replace_ciphertexts" in request.target))
            supabase.faults.cut_before(when=_every(5, lambda request: request.method == "GET"))
            report = await sweep(tokens, under_kms, observed=observed).run()
    assert len(page) == 60
    supabase.faults.clear()
    kms.faults.clear()
    after = rows.rows()
    assert counts(report) == {
        "due": len(made),
        "rewrapped": users,
        "overtaken": 0,
        "unreadable": 4,
        "in doubt": 0,
        "remaining": 4,
    }
    [under] = supabase.sql(
        "select count(*) filter (where encryption_scheme = %s) as rewrapped, count(*) as rows from public.oauth_tokens",
        [f"kms:{kms.key_arn}"],
    )
    assert under == {"rewrapped": report.rewrapped, "rows": len(made)}
    assert {"store_unavailable", "key_unavailable"} <= set(observed.waits)
    left = [row_id for row_id, row in after.items() if row["encryption_scheme"] != f"kms:{kms.key_arn}"]
    assert sorted(observed.unreadable_ids) == sorted(left)
    assert {row_id: after[row_id] for row_id in left} == {row_id: before[row_id] for row_id in left}
    outcomes = [event.outcome for event in observed.events]
    assert (len(outcomes), outcomes.count("success")) == (len(made), users)
    reader = encryption(kms_settings(kms, primary=True))
    rewrapped = [row_id for row_id in after if row_id not in left]
    assert {
        what_a_row_holds(reader, after[row_id]) == (access_of(row_id), refresh_of(row_id)) for row_id in rewrapped
    } == {True}


async def test_an_interrupted_read_back_continues_with_the_pending_rows(supabase: SupabaseStack) -> None:
    """A page takes several requests to read back. If each lost answer restarted it, it would never end."""
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(PAGE_ROWS))
    supabase.faults.cut_after_commit(times=1, when=lambda request: "replace_ciphertexts" in request.target)
    supabase.faults.cut_before(when=_every(4, lambda request: "read_back" in request.target))
    async with opened(rows) as tokens:
        report = await sweep(tokens, local_encryption(2), plan=SweepPlan(deadline_seconds=90)).run()
    assert report.stopped is None
    assert counts(report) == all_rewrapped(PAGE_ROWS)
    assert rows.count("local:v2") == PAGE_ROWS


async def test_a_row_locked_for_a_moment_is_rewrapped_and_counted_once(supabase: SupabaseStack) -> None:
    """The lock may belong to the sweep's own first write, whose answer was lost."""
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(5))
    held = next(iter(rows.rows()))
    async with opened(rows) as tokens:
        with supabase.postgres.connect(supabase.database.name) as other:
            with other.connection.transaction():
                other.sql("select from public.oauth_tokens where id = %s for update", [held])
                running = asyncio.create_task(sweep(tokens, local_encryption(2)).run())
                await eventually_async(lambda: rows.count("local:v2") == 4)
            report = await running
    assert counts(report) == all_rewrapped(5)


async def test_a_row_locked_for_long_stops_nothing_and_is_rewrapped_later(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(5))
    held = next(iter(rows.rows()))
    async with opened(rows) as tokens:
        with supabase.postgres.connect(supabase.database.name) as other:
            with other.connection.transaction():
                other.sql("select from public.oauth_tokens where id = %s for update", [held])
                observed = Observed()
                overtaken = asyncio.Event()
                observed.on_progress = lambda report: overtaken.set() if report.overtaken else None
                running = asyncio.create_task(sweep(tokens, local_encryption(2), observed=observed).run())
                await asyncio.wait_for(overtaken.wait(), 60)
            report = await running
    assert (report.rewrapped, report.remaining) == (5, 0)
    assert rows.count("local:v2") == 5


async def test_a_store_that_loses_every_answer_leaves_rows_in_doubt(supabase: SupabaseStack) -> None:
    rows = SupabaseRows(supabase)
    rows.insert(rows_under_first(30))
    supabase.faults.cut_after_commit(when=lambda request: "replace_ciphertexts" in request.target)
    supabase.faults.answer(503, when=lambda request: "read_back" in request.target)
    async with opened(rows) as tokens:
        report = await sweep(tokens, local_encryption(2), plan=SweepPlan(retry_seconds=0.5)).run()
    assert report.stopped is not None
    assert counts(report) == {**all_rewrapped(30), "rewrapped": 0, "in doubt": 30}
    assert rows.count("local:v2") == 30, "the report may not claim it, because no answer arrived"


# --- several at once


@ROWS_ON_EVERY_STORE
async def test_several_sweeps_at_once_rewrap_each_row_once(rows: Rows) -> None:
    rows.insert(rows_under_first(600))
    async with opened(rows) as tokens:
        reports = await asyncio.gather(*(sweep(tokens, local_encryption(2)).run() for _ in range(4)))
    assert sum(report.rewrapped for report in reports) == 600
    assert {report.remaining for report in reports} == {0}
    reader = encryption(key_settings(2))
    found = rows.rows()
    assert {what_a_row_holds(reader, row) == (access_of(key), refresh_of(key)) for key, row in found.items()} == {True}


@ROWS_ON_EVERY_STORE
async def test_scattered_sweeps_rewrap_every_row(rows: Rows) -> None:
    """As background sweeps do. A page holds a fraction of the rows, so that the sweeps reach the beginning again."""
    rows.insert([*rows_under_first(150), *broken_rows().values()])
    plan = SweepPlan(scattered=True, rows_per_second=40)  # pages of 40
    hasty = SweepPlan(scattered=True)
    async with opened(rows) as tokens:
        sweeps = [sweep(tokens, local_encryption(2), plan=one) for one in (plan, hasty, hasty)]
        reports = await asyncio.gather(*(one.run() for one in sweeps))
        again = await sweep(tokens, local_encryption(2), plan=hasty).run()
    assert sum(report.rewrapped for report in reports) == 150
    assert counts(again) == {**all_rewrapped(0), "due": 4, "unreadable": 4, "remaining": 4}
    assert rows.count("local:v2") == 150


# --- memory and output


async def test_memory_does_not_grow_with_the_table(tmp_path: Path) -> None:
    few = await _peak_bytes(SqliteRows(tmp_path / "few.db"), 1_000)
    many = await _peak_bytes(SqliteRows(tmp_path / "many.db"), 2_000)
    assert many < 1.25 * few, (few, many)
    assert PAGE_ROWS * CONCURRENT_PAGES < 1_000, "both tables are larger than the pages in memory"


async def _peak_bytes(rows: SqliteRows, count: int) -> int:
    """Return the peak memory of a sweep, after the caches are filled."""
    # few users, because the cache of derived keys has its own bound
    rows.insert([bound_row(local_encryption(1), f"{number % 8:08}{_USER}", number) for number in range(count)])
    service = encryption(key_settings(2, 1))
    async with opened(rows) as tokens:
        await sweep(tokens, service, plan=SweepPlan(dry_run=True, limit=10)).run()
        gc.collect()
        tracemalloc.start()
        try:
            await sweep(tokens, service, observed=_Forgetful()).run()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()


class _Forgetful(Observed):
    """Keeps nothing."""

    def record(self, event: object) -> None: ...


@ROWS_ON_EVERY_STORE
async def test_nothing_secret_is_reported_or_printed(kms: Kms, rows: Rows, caplog: pytest.LogCaptureFixture) -> None:
    rows.insert([*rows_under_first(20), *broken_rows().values()])
    before = rows.rows()
    aws_secret = "wJalrXUtnFEMI/K7MDENG"
    service = encryption(kms_settings(kms, primary=True) | {"AWS_SECRET_ACCESS_KEY": aws_secret})
    observed, said = Observed(), io.StringIO()
    kms.faults.error("ThrottlingException", times=2)
    with redirect_stdout(said), redirect_stderr(said), caplog.at_level(logging.DEBUG, logger="app"):
        async with opened(rows) as tokens:
            running = sweep(tokens, service, observed=observed)
            report = await running.run()
    everything = said.getvalue() + caplog.text + repr((observed, report, running))
    secrets = [*KEYS.values(), "1234~access of", "refresh of", aws_secret]
    for one in (before, rows.rows()):
        secrets += [row[name] for row in one.values() for name in ("access_token", "refresh_token") if row[name]]
    assert len(observed.events) == 24
    assert [secret for secret in secrets if secret in everything] == []
