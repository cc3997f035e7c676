"""Rows that do not move stop nothing, and hide nothing: neither other rows nor a store that does not work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.errors import StoreMisconfigured
from tests.process.rewrap_run import rewrap
from tests.process.stored_rows import (
    Row,
    SupabaseRows,
    key_settings,
    local_encryption,
    sealed_row,
)
from tests.tokens.stores import SupabaseStore
from tests.tokens.sweeps import Heard, all_moved, counts, sweep

if TYPE_CHECKING:
    from tests.stack.supabase import SupabaseStack

SECOND = key_settings(2, 1)


def _under_first(count: int) -> list[Row]:
    return [sealed_row(local_encryption(1)) for _ in range(count)]


# --- rows that the store refuses

_REFUSED_IDS = "ffffffff-ffff-4fff-bfff-fffffffffff"


@pytest.fixture
def refusing(supabase: SupabaseStack) -> Iterator[SupabaseStack]:
    """A project whose own trigger refuses to change some rows."""
    supabase.sql(
        "create function public.refuse() returns trigger language plpgsql as $$ begin"
        f" if starts_with(new.id::text, '{_REFUSED_IDS}') then raise exception using errcode = '23514', message = 'no'; end if;"
        " return new; end $$"
    )
    supabase.sql(
        "create trigger refuse before update on public.oauth_tokens for each row execute function public.refuse()"
    )
    yield supabase
    supabase.sql("drop trigger refuse on public.oauth_tokens")
    supabase.sql("drop function public.refuse()")


def _refused(count: int) -> list[Row]:
    return [row | {"id": f"{_REFUSED_IDS}{n}"} for n, row in enumerate(_under_first(count))]


@pytest.mark.parametrize(("refused", "others"), [(1, 0), (2, 0), (3, 30)])
async def test_rows_that_the_store_refuses_are_told_one_by_one_be_there_others_or_not(
    refusing: SupabaseStack, refused: int, others: int
) -> None:
    rows, bad = SupabaseRows(refusing), _refused(refused)
    rows.insert([*bad, *_under_first(others)])
    heard = Heard()
    async with SupabaseStore(refusing).open() as tokens:
        report = await sweep(tokens, local_encryption(2), heard=heard).run()
    left = {"due": refused + others, "unreadable": refused, "remaining": refused}
    assert counts(report) == {**all_moved(others), **left}
    assert (report.stopped, dict(report.unreadable)) == (None, {"store_misconfigured": refused})
    assert sorted(heard.unreadable_ids) == sorted(row["id"] for row in bad)


def test_two_refused_rows_and_nothing_else_end_the_command_with_1(refusing: SupabaseStack, tmp_path: Path) -> None:
    rows, bad = SupabaseRows(refusing), _refused(2)
    rows.insert(bad)
    done = rewrap(folder=tmp_path, settings=rows.settings() | SECOND)
    assert (done.exit_code, done.unreadable) == (1, {row["id"]: "store_misconfigured" for row in bad})


async def test_a_store_that_takes_no_rewrap_at_all_ends_the_sweep_and_blames_no_row(supabase: SupabaseStack) -> None:
    SupabaseRows(supabase).insert(_under_first(3))
    heard = Heard()
    supabase.sql("revoke update on public.oauth_tokens from service_role")
    try:
        async with SupabaseStore(supabase).open() as tokens:
            with pytest.raises(StoreMisconfigured):
                await sweep(tokens, local_encryption(2), heard=heard).run()
    finally:
        supabase.sql("grant update on public.oauth_tokens to service_role")
    assert heard.unreadable_ids == []
