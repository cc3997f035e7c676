"""The part of the store contract that a rewrap relies on, for every store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from app.tokens.census import CensusRow
from app.tokens.models import Rewrap, StoredToken, TokenId, TokenStatus, UnreadableRow
from app.tokens.repository import TokenRepository
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import (
    NOW,
    PostgresStore,
    SqliteStore,
    Store,
    SupabaseStore,
    raw_row,
    rows_by_id,
    token,
)

_ON_SERVERS = pytest.mark.parametrize("kind", [PostgresStore, SupabaseStore])
BOUND = "v1:" + "A" * 40
OLD = "0a:0b:0c"
OLD_WITH_VERSION = "v3:0a:0b:0c"
PACKAGE = '{"ciphertext":"eA==","algorithm":"KMS"}'
ENVELOPE = 'kms:{"fmt":1,"kid":"k"}'


def _rewrap(row: StoredToken, **changes: Any) -> Rewrap:
    """Return a rewrap to the second key."""
    columns: dict[str, Any] = {
        "access_ciphertext": f"v2:{uuid4().hex}",
        "refresh_ciphertext": None if row.refresh_ciphertext is None else f"v2:{uuid4().hex}",
        "encryption_scheme": "local:v2",
        "encryption_method": "aes256-gcm-v2",
        "kms_key_id": None,
        "encryption_fallback": False,
        **changes,
    }
    return Rewrap(row, replace(row, **columns))


async def _inserted(tokens: TokenRepository, count: int, **changes: Any) -> list[StoredToken]:
    rows = [token(**changes) for _ in range(count)]
    await asyncio.gather(*map(tokens.insert, rows))
    return sorted(rows, key=lambda row: row.id)


async def _only(tokens: TokenRepository, row_id: str) -> StoredToken:
    return (await rows_by_id(tokens, [row_id]))[row_id]


# --- the write


async def test_a_rewrap_changes_only_secrets_scheme_and_encryption_metadata(
    store: Store, tokens: TokenRepository
) -> None:
    row = token(
        refresh_ciphertext="v1:refresh",
        encryption_fallback=True,
        status=TokenStatus.REVOKED,
        status_reason="gone",
        expires_at=NOW + timedelta(days=1),
        scopes=("read", 'quo"te'),
        email="o'brien@example.org",
        base_url="https://canvas.example.edu",
        metadata={"n": None, "deep": {"list": [None, True, {"y": []}]}, "ü": "✓", "kms_like": "kms"},
        version=7,
    )
    await tokens.insert(row)
    [before] = store.rows()
    rewrap = _rewrap(row, encryption_scheme="kms:arn", encryption_method="kms", kms_key_id="canvas_kms_x")
    assert await tokens.replace_ciphertexts([rewrap]) == {row.id}
    [after] = store.rows()
    assert after == before | {
        "access_token": rewrap.after.access_ciphertext,
        "refresh_token": rewrap.after.refresh_ciphertext,
        "encryption_scheme": "kms:arn",
        "metadata": after["metadata"],
    }
    ours = {"encryption_method": "kms", "kms_key_id": "canvas_kms_x"}
    assert after["metadata"] == {
        **{name: value for name, value in before["metadata"].items() if name != "encryption_fallback"},
        **ours,
    }
    assert await _only(tokens, row.id) == rewrap.after


async def test_metadata_about_kms_is_removed_when_a_token_leaves_kms(tokens: TokenRepository) -> None:
    row = token(encryption_scheme="kms:arn", encryption_method="kms", kms_key_id="canvas_kms_x", metadata={"a": 1})
    await tokens.insert(row)
    rewrap = _rewrap(row)
    await tokens.replace_ciphertexts([rewrap])
    assert await _only(tokens, row.id) == rewrap.after


@pytest.mark.parametrize(
    "differing",
    [
        {"version": 4},
        {"version": 6},
        {"encryption_scheme": "local:v9"},
        {"encryption_scheme": None},
        {"access_ciphertext": "v1:other"},
        {"refresh_ciphertext": "v1:other"},
        {"refresh_ciphertext": None},
        {"id": str(uuid4())},
    ],
)
async def test_a_rewrap_holds_only_for_the_row_that_was_decrypted(
    store: Store, tokens: TokenRepository, differing: dict[str, Any]
) -> None:
    row = token(version=5, refresh_ciphertext="v1:refresh")
    await tokens.insert(row)
    before = store.rows()
    assert await tokens.replace_ciphertexts([_rewrap(replace(row, **differing))]) == set()
    assert store.rows() == before


async def test_a_rewrap_without_a_scheme_requires_a_row_without_one(store: Store, tokens: TokenRepository) -> None:
    bare, marked = token(encryption_scheme=None), token()
    await tokens.insert(bare)
    await tokens.insert(marked)
    wrong = _rewrap(replace(marked, encryption_scheme=None))
    right = _rewrap(bare)
    assert await tokens.replace_ciphertexts([wrong, right]) == {bare.id}
    assert await _only(tokens, marked.id) == marked
    assert await _only(tokens, bare.id) == right.after
    assert len(store.rows()) == 2


@pytest.mark.parametrize("empty", ["", None])
async def test_an_empty_refresh_token_stays_as_it_is(store: Store, tokens: TokenRepository, empty: str | None) -> None:
    store.insert_raw(**raw_row(user_id=str(uuid4()), refresh_token=empty))
    [row] = await tokens.page(None, after=None, limit=10)
    assert isinstance(row, StoredToken)
    assert await tokens.replace_ciphertexts([_rewrap(row)]) == {row.id}
    [after] = store.rows()
    assert (after["refresh_token"], after["encryption_scheme"]) == (empty, "local:v2")


async def test_unchanged_rows_of_a_page_are_written_and_a_repeat_writes_none(
    store: Store, tokens: TokenRepository
) -> None:
    rows = await _inserted(tokens, 40)
    changed, deleted, *rest = rows
    newer = await tokens.replace(changed, replace(changed, access_ciphertext="v1:newer", version=2))
    await tokens.delete(deleted)
    rewraps = [_rewrap(row) for row in rows]
    assert await tokens.replace_ciphertexts(rewraps) == {row.id for row in rest}
    written = store.rows()
    assert await tokens.replace_ciphertexts(rewraps) == set()
    assert store.rows() == written
    found = await rows_by_id(tokens, [row.id for row in rows])
    assert found == {changed.id: newer} | {one.before.id: one.after for one in rewraps[2:]}
    assert await tokens.replace_ciphertexts([]) == set()


async def test_one_of_several_concurrent_rewraps_of_a_row_wins(tokens: TokenRepository) -> None:
    [row] = await _inserted(tokens, 1)
    rewraps = [_rewrap(row) for _ in range(20)]
    written = await asyncio.gather(*(tokens.replace_ciphertexts([one]) for one in rewraps))
    [winner] = [one for one, ids in zip(rewraps, written, strict=True) if ids]
    assert await _only(tokens, row.id) == winner.after


async def test_a_write_based_on_the_row_before_a_rewrap_is_refused(tokens: TokenRepository) -> None:
    """The version stays, so only the scheme prevents a write that would undo half of a rewrap."""
    [row] = await _inserted(tokens, 1)
    rewrap = _rewrap(row)
    await tokens.replace_ciphertexts([rewrap])
    assert await tokens.replace(row, replace(row, access_ciphertext="v1:late", version=2)) is None
    newer = replace(rewrap.after, access_ciphertext="v2:newer", version=2)
    assert await tokens.replace(rewrap.after, newer) == newer


async def test_metadata_that_is_no_object_does_not_stop_a_rewrap(store: Store, tokens: TokenRepository) -> None:
    store.insert_raw(**raw_row(user_id=str(uuid4()), metadata=[1]))
    [row] = await tokens.page(None, after=None, limit=1)
    assert isinstance(row, StoredToken)
    assert await tokens.replace_ciphertexts([_rewrap(row)]) == {row.id}
    assert store.rows()[0]["metadata"] == {"encryption_method": "aes256-gcm-v2"}


# --- reading


async def test_pages_hold_one_scheme_by_id_and_end_with_an_empty_page(tokens: TokenRepository) -> None:
    firsts = await _inserted(tokens, 25)
    bare = await _inserted(tokens, 3, encryption_scheme=None)
    await _inserted(tokens, 3, encryption_scheme="local:v10")
    assert await _pages(tokens, "local:v1", limit=10) == [firsts[:10], firsts[10:20], firsts[20:]]
    assert await _pages(tokens, None, limit=10) == [bare]
    assert await _pages(tokens, "local:v9", limit=10) == []


async def _pages(tokens: TokenRepository, scheme: str | None, *, limit: int, provider: str | None = None) -> list[Any]:
    pages: list[Any] = []
    while page := await tokens.page(scheme, after=pages[-1][-1].id if pages else None, limit=limit, provider=provider):
        pages.append(page)
    return pages


async def test_pages_and_counts_of_one_provider_exclude_the_others(tokens: TokenRepository) -> None:
    canvas = await _inserted(tokens, 5)
    google = sorted([token(TokenId(str(uuid4()), "google"), encryption_scheme="local:v1") for _ in range(4)], key=_id)
    bare = token(TokenId(str(uuid4()), "google"), encryption_scheme=None, access_ciphertext=OLD)
    await asyncio.gather(*map(tokens.insert, [*google, bare]))
    assert await _pages(tokens, "local:v1", limit=3, provider="google") == [google[:3], google[3:]]
    assert await _pages(tokens, None, limit=3, provider="google") == [[bare]]
    assert await _pages(tokens, "local:v1", limit=9, provider="canvas") == [canvas]
    assert await _pages(tokens, "local:v1", limit=9, provider="notion") == []
    assert set(await tokens.census(provider="google")) == {
        CensusRow("local:v1", (), 4),
        CensusRow(None, ("pulseplan-local:v1",), 1),
    }
    assert await tokens.census(provider="notion") == []


def _id(row: StoredToken) -> str:
    return row.id


async def test_the_census_counts_rows_without_a_scheme_by_their_formats(store: Store, tokens: TokenRepository) -> None:
    assert await tokens.census() == []
    for access, refresh in [
        (BOUND, ""),
        (BOUND, None),
        (BOUND, OLD),
        (OLD_WITH_VERSION, OLD_WITH_VERSION),
        (PACKAGE, ""),
        (f"kms:{PACKAGE}", ""),
        (ENVELOPE, "nonsense"),
    ]:
        store.insert_raw(**raw_row(access_token=access, refresh_token=refresh))
    await _inserted(tokens, 3, encryption_scheme="kms:arn:aws:kms:eu-west-1:1:key/x", refresh_ciphertext=OLD)
    await _inserted(tokens, 2, encryption_scheme="")
    lines = await tokens.census()
    assert len(lines) == len(set(lines))
    assert set(lines) == {
        CensusRow("kms:arn:aws:kms:eu-west-1:1:key/x", (), 3),
        CensusRow("", (), 2),
        CensusRow(None, ("local:v1",), 2),
        CensusRow(None, ("local:v1", "pulseplan-local:v1"), 1),
        CensusRow(None, ("pulseplan-local:v3",), 1),
        CensusRow(None, ("pulseplan-kms",), 2),
        CensusRow(None, ("kms", "unknown"), 1),
    }


async def test_each_scheme_is_returned_once(store: Store, tokens: TokenRepository) -> None:
    assert await tokens.schemes() == []
    await _inserted(tokens, 1, encryption_scheme=None)
    assert await tokens.schemes() == [None]
    await _inserted(tokens, 3)
    for scheme in ("kms:arn:aws:kms:eu-west-1:1:key/x", "", "local:v10", None):
        await _inserted(tokens, 2, encryption_scheme=scheme)
    found = await tokens.schemes()
    assert len(found) == 5
    assert set(found) == {row["encryption_scheme"] for row in store.rows()}


async def test_rows_are_read_by_id_without_missing_ones(tokens: TokenRepository) -> None:
    rows = await _inserted(tokens, 60)
    wanted = [row.id for row in rows[:55]]
    found = await tokens.read_back([*wanted, str(uuid4())])
    assert found == {row.id: row for row in rows[:55]}
    assert await tokens.read_back([]) == {}


async def test_a_row_that_is_no_token_is_reported_in_its_place(tmp_path: Any) -> None:
    """Only SQLite's types allow such a row."""
    store = SqliteStore(tmp_path / "vault.db")
    async with store.open() as tokens:
        rows = await _inserted(tokens, 3)
        broken = str(uuid4())
        store.insert_raw(**raw_row(id=broken, metadata="{", encryption_scheme="local:v1", access_token="never quoted"))
        page = await tokens.page("local:v1", after=None, limit=10)
    [unreadable] = [row for row in page if isinstance(row, UnreadableRow)]
    assert unreadable.id == broken
    assert "never quoted" not in repr(unreadable)
    assert [row.id for row in page] == sorted([broken, *(row.id for row in rows)])


# --- Supabase


def _insert_many(stack: SupabaseStack, count: int) -> None:
    stack.sql(
        "insert into public.oauth_tokens (user_id, provider, access_token, encryption_scheme, last_refreshed)"
        " select gen_random_uuid(), 'canvas', 'v1:' || number, 'local:v1', now() from generate_series(1, %s) number",
        [count],
    )


@pytest.mark.parametrize("cap", [7, 1_000])
async def test_capped_pages_lose_no_row_and_counts_are_not_capped(supabase: SupabaseStack, cap: int) -> None:
    _insert_many(supabase, 2 * cap + 3)
    async with SupabaseStore(supabase).open() as tokens:
        with supabase.at_most(cap):
            await _until_pages_have(tokens, cap, of=cap + 1)
            pages = await _pages(tokens, "local:v1", limit=2_000)
            assert [len(page) for page in pages] == [cap, cap, 3]
            rows = [row for page in pages for row in page]
            assert [row.id for row in rows] == sorted({row.id for row in rows})
            assert await tokens.census() == [CensusRow("local:v1", (), len(rows))]
            assert await tokens.replace_ciphertexts([_rewrap(row) for row in rows]) == {row.id for row in rows}
        [left] = supabase.sql("select count(*) from public.oauth_tokens where encryption_scheme <> 'local:v2'")
        assert left == {"count": 0}
        await _until_pages_have(tokens, min(2 * cap, 1_000), of=min(2 * cap, 1_000))  # the cap is its own again


async def _until_pages_have(tokens: TokenRepository, rows: int, *, of: int) -> None:
    until = time.monotonic() + 60
    found = -1
    while found != rows:
        assert time.monotonic() < until, f"PostgREST does not take up its cap: pages have {found} rows"
        await asyncio.sleep(0.02)
        pages = [await tokens.page(scheme, after=None, limit=of) for scheme in ("local:v1", "local:v2")]
        found = max(map(len, pages))


@_ON_SERVERS
async def test_a_secret_written_by_something_else_is_due_at_a_new_version(
    supabase: SupabaseStack, kind: type[SupabaseStore]
) -> None:
    async with kind(supabase).open() as tokens:
        access, refresh, other = await _inserted(tokens, 3, refresh_ciphertext="v1:refresh")
        supabase.sql("update public.oauth_tokens set access_token = 'theirs' where id = %s", [access.id])
        supabase.sql("update public.oauth_tokens set refresh_token = 'theirs' where id = %s", [refresh.id])
        supabase.sql("update public.oauth_tokens set email = 'a@b.test' where id = %s", [other.id])
        rows = await rows_by_id(tokens, [access.id, refresh.id, other.id])
        assert {row_id: (row.encryption_scheme, row.version) for row_id, row in rows.items()} == {
            access.id: (None, 2),
            refresh.id: (None, 2),
            other.id: ("local:v1", 1),
        }
        assert await tokens.replace_ciphertexts([_rewrap(row) for row in (access, refresh)]) == set()
        assert await tokens.replace(access, replace(access, access_ciphertext="v1:ours", version=2)) is None
        assert [row.id for row in await tokens.page(None, after=None, limit=9)] == [access.id, refresh.id]


@_ON_SERVERS
async def test_a_locked_row_is_skipped_without_waiting(supabase: SupabaseStack, kind: type[SupabaseStore]) -> None:
    async with kind(supabase).open() as tokens:
        held, free = await _inserted(tokens, 2)
        with supabase.postgres.connect(supabase.database.name) as other, other.connection.transaction():
            other.sql("select from public.oauth_tokens where id = %s for update", [held.id])
            rewraps = [_rewrap(held), _rewrap(free)]
            async with asyncio.timeout(30):
                assert await tokens.replace_ciphertexts(rewraps) == {free.id}
        assert await tokens.replace_ciphertexts(rewraps) == {held.id}
