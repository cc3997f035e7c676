"""Shards divide a table: together they hold every row once, and several sweeps at once never meet."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from uuid import UUID, uuid4

import pytest

from app.rewrap.key_ranges import KeyRange, Shard, scattered_ranges
from app.rewrap.sweep import SweepPlan
from tests.support.process.fixtures import ROWS_ON_EVERY_STORE
from tests.support.rewrap.stored_rows import (
    Rows,
    SqliteRows,
    broken_rows,
    local_encryption,
    rows_under_first,
    sealed_row,
)
from tests.support.rewrap.sweeps import Observed, counts, opened, sweep

_NO_UUIDS = ("", "0", "row 7", "ffffffff-ffff-ffff-ffff-ffffffffffff", "é")


def _holds(key_range: KeyRange, row_id: str) -> bool:
    after, last = key_range.after, key_range.last
    return (after is None or row_id > after) and (last is None or row_id <= last)


@pytest.mark.parametrize("count", [1, 2, 3, 7, 999])
def test_every_id_is_in_exactly_one_shard(count: int) -> None:
    shards = [Shard(number, count).key_range for number in range(1, count + 1)]
    bounds = [key_range.last for key_range in shards[:-1]]
    assert bounds == [key_range.after for key_range in shards[1:]]
    ids = [*_NO_UUIDS, *(str(uuid4()) for _ in range(200)), *(bound for bound in bounds if bound)]
    assert {row_id: sum(_holds(one, row_id) for one in shards) for row_id in ids} == dict.fromkeys(ids, 1)


def test_shards_are_equally_large() -> None:
    bounds = [0, *(UUID(Shard(number, 7).key_range.last).int for number in range(1, 7)), 2**128]
    assert {(after - before) * 7 // 2**127 for before, after in pairwise(bounds)} == {1, 2}


def test_scattered_ranges_hold_every_id_once() -> None:
    ids = [*_NO_UUIDS, *(str(uuid4()) for _ in range(200))]
    ranges = scattered_ranges()
    assert {sum(_holds(one, row_id) for one in ranges) for row_id in ids} == {1}


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "1/1000", "-1/2", "1/2/3", "01/2", "1 / 2", "a/b"])
def test_a_wrong_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be I/N"):
        Shard.parse(text)


@ROWS_ON_EVERY_STORE
async def test_shards_at_once_rewrap_each_row_once_and_no_row_twice(rows: Rows) -> None:
    rows.insert([*rows_under_first(600), *broken_rows().values()])
    observed = Observed()
    async with opened(rows) as tokens:
        plans = [SweepPlan(shard=Shard(number, 3)) for number in (1, 2, 3)]
        sweeps = [sweep(tokens, local_encryption(2), observed=observed, plan=plan) for plan in plans]
        reports = await asyncio.gather(*(one.run() for one in sweeps))
    assert sum(report.rewrapped for report in reports) == 600
    assert sum(report.overtaken for report in reports) == 0
    assert sum(report.unreadable.total() for report in reports) == 4
    rewrapped = [event.token_id for event in observed.events if event.outcome == "success"]
    assert len(rewrapped) == len(set(rewrapped)) == 600
    assert rows.count("local:v2") == 600


@ROWS_ON_EVERY_STORE
async def test_a_shard_rewraps_its_own_rows_and_counts_all(rows: Rows) -> None:
    rows.insert(rows_under_first(300))
    before = rows.rows()
    shard = Shard(2, 3)
    ours = {row_id for row_id in before if _holds(shard.key_range, row_id)}
    async with opened(rows) as tokens:
        report = await sweep(tokens, local_encryption(2), plan=SweepPlan(shard=shard)).run()
    after = rows.rows()
    assert {row_id for row_id in after if after[row_id] != before[row_id]} == ours
    assert counts(report) == {
        "due": 300,
        "rewrapped": len(ours),
        "overtaken": 0,
        "unreadable": 0,
        "in doubt": 0,
        "remaining": 300 - len(ours),
    }
    assert report.stopped is None


async def test_a_shard_takes_rows_that_are_added_to_it_during_the_sweep(sqlite: SqliteRows) -> None:
    sqlite.insert(rows_under_first(20))
    late = [
        sealed_row(local_encryption(1)) | {"id": f"0000000{number}-0000-4000-8000-000000000000"} for number in (1, 2)
    ]

    def add(_: object) -> None:
        if late:
            sqlite.insert([late.pop()])

    async with opened(sqlite) as tokens:
        plan = SweepPlan(shard=Shard(1, 2))
        await sweep(tokens, local_encryption(2), observed=Observed(on_progress=add), plan=plan).run()
    assert {row["encryption_scheme"] for key, row in sqlite.rows().items() if key < "8"} == {"local:v2"}
