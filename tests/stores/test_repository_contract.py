"""The contract of `TokenRepository`, on every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from app.tokens.models import StoredToken, TokenId, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.stores.stores import NOW, Store, insert_all, raw_row, token

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = TokenId(USER, "canvas")


async def test_a_fresh_store_passes_its_check(tokens: TokenRepository) -> None:
    await tokens.check()


async def test_an_inserted_token_is_read_back_equal(tokens: TokenRepository) -> None:
    row = token(
        CANVAS,
        refresh_ciphertext="v1:refresh",
        encryption_fallback=True,
        kms_key_id="canvas_kms_user_0123456789abcdef",
        status=TokenStatus.NEEDS_REAUTH,
        status_reason="Canvas answered 401: ünïcödé ✓ 😀",
        expires_at=NOW + timedelta(days=120),
        scopes=("https://www.googleapis.com/auth/calendar", "a,b", 'quo"te', "{brace}", "back\\slash"),
        email="o'brien+x@example.org",
        base_url="https://canvas.example.edu",
        metadata={"n": 1, "f": 0.1, "deep": {"list": [None, True, "x", {"y": []}]}, "ü": "✓"},
    )
    assert await tokens.insert(row) == row
    assert await tokens.get(CANVAS) == row


async def test_a_missing_token_is_none(tokens: TokenRepository) -> None:
    assert await tokens.get(CANVAS) is None


async def test_a_token_id_is_inserted_once(tokens: TokenRepository) -> None:
    first = token(CANVAS)
    assert await tokens.insert(first) == first
    assert await tokens.insert(token(CANVAS)) is None
    assert await tokens.get(CANVAS) == first


async def test_one_of_concurrent_inserts_succeeds(tokens: TokenRepository) -> None:
    results = await asyncio.gather(*(tokens.insert(token(CANVAS)) for _ in range(20)))
    winners = [row for row in results if row is not None]
    assert len(winners) == 1
    assert await tokens.get(CANVAS) == winners[0]


async def test_service_types_and_providers_are_separate_tokens(tokens: TokenRepository) -> None:
    ids = [TokenId(USER, "google", "calendar"), TokenId(USER, "google", "gmail"), TokenId(USER, "notion2")]
    for token_id in ids:
        await tokens.insert(token(token_id))
    assert [row.token_id for row in await tokens.list_for_user(USER)] == ids


async def test_a_list_of_a_user_has_no_more_rows_than_its_limit(tokens: TokenRepository) -> None:
    """One row more than a caller takes shows it that there are too many."""
    rows = [token(TokenId(USER, "google", f"s{number}")) for number in range(7)]
    await insert_all(tokens, [*rows, token()])
    for limit, length in ((1, 1), (6, 6), (7, 7), (8, 7)):
        found = [row.token_id for row in await tokens.list_for_user(USER, limit=limit)]
        assert len(set(found)) == len(found) == length, limit
        assert found == sorted(found)
    assert await tokens.list_for_user(USER) == rows


async def test_replace_is_conditional_on_the_version(tokens: TokenRepository) -> None:
    first = token(CANVAS)
    await tokens.insert(first)
    second = replace(first, access_ciphertext="v1:second", version=2)
    assert await tokens.replace(first, second) == second
    assert await tokens.replace(first, replace(first, access_ciphertext="v1:lost", version=2)) is None
    assert await tokens.get(CANVAS) == second


async def test_one_of_concurrent_replacements_succeeds(tokens: TokenRepository) -> None:
    first = token(CANVAS)
    await tokens.insert(first)
    drafts = [replace(first, access_ciphertext=f"v1:{n}", version=2) for n in range(20)]
    results = await asyncio.gather(*(tokens.replace(first, draft) for draft in drafts))
    winners = [row for row in results if row is not None]
    assert len(winners) == 1
    assert await tokens.get(CANVAS) == winners[0]


async def test_replace_writes_only_the_columns_that_differ(store: Store, tokens: TokenRepository) -> None:
    """A write that changes no secret cannot undo a secret that another program wrote without a new version."""
    row = token(CANVAS)
    await tokens.insert(row)
    stale = replace(row, access_ciphertext="read before the other write")
    assert await tokens.replace(stale, replace(stale, status=TokenStatus.ERROR, version=2)) is not None
    assert store.rows()[0]["access_token"] == row.access_ciphertext


async def test_delete_is_conditional_on_the_version(tokens: TokenRepository) -> None:
    row = token(CANVAS)
    await tokens.insert(row)
    assert not await tokens.delete(replace(row, version=7))
    assert await tokens.get(CANVAS) == row
    assert await tokens.delete(row)
    assert not await tokens.delete(row)
    assert await tokens.get(CANVAS) is None


async def test_delete_many_deletes_each_row_at_its_version(tokens: TokenRepository) -> None:
    """A deletion that arrives late must not delete a token that was stored after it was sent."""
    rows = [token(TokenId(USER, "google", f"s{number}")) for number in range(60)]
    changed, other = token(CANVAS), token(TokenId(str(uuid4()), "canvas"))
    await insert_all(tokens, [*rows, changed, other])
    newer = replace(changed, access_ciphertext="v1:newer", version=2)
    await tokens.replace(changed, newer)
    assert (await tokens.delete_many([*rows, changed])).deleted == 60
    assert (await tokens.delete_many(rows)).deleted == 0
    assert (await tokens.delete_many([])).deleted == 0
    assert await tokens.list_for_user(USER) == [newer]
    assert await tokens.get(other.token_id) == other


async def test_timestamps_beyond_pythons_range_hide_no_row(store: Store, tokens: TokenRepository) -> None:
    """PostgreSQL's timestamps exceed Python's range; such a row must not fail a read of many."""
    for number, (text, moment) in enumerate(
        [
            ("infinity", None),
            ("-infinity", datetime.min.replace(tzinfo=UTC)),
            ("10000-01-01T00:00:00+00:00", None),
            ("0044-03-15T00:00:00+00:00 BC", datetime.min.replace(tzinfo=UTC)),
        ]
    ):
        token_id = TokenId(USER, "google", f"s{number}")
        store.insert_raw(**raw_row(user_id=USER, provider="google", service_type=f"s{number}", expires_at=text))
        row = await tokens.get(token_id)
        assert isinstance(row, StoredToken)
        assert row.expires_at == moment
    assert len(await tokens.list_for_user(USER)) == 4
    assert len(await tokens.get_many([TokenId(USER, "google", f"s{number}") for number in range(4)])) == 4


async def test_metadata_that_is_not_an_object_hides_no_row(store: Store, tokens: TokenRepository) -> None:
    store.insert_raw(**raw_row(user_id=USER, metadata=[1]))
    row = await tokens.get(CANVAS)
    assert isinstance(row, StoredToken)
    assert row.metadata == {}


async def test_get_many_returns_exactly_the_tokens_asked_for(tokens: TokenRepository) -> None:
    wanted = [token(TokenId(str(uuid4()), "canvas")) for _ in range(60)]
    decoys = [token(TokenId(row.token_id.user_id, "canvas", "other")) for row in wanted[:20]]
    await insert_all(tokens, [*wanted, *decoys])
    missing = [TokenId(str(uuid4()), "canvas") for _ in range(40)]
    found = await tokens.get_many([row.token_id for row in wanted] + missing)
    assert found == {row.token_id: row for row in wanted}
    assert await tokens.get_many([]) == {}


async def test_timestamps_keep_their_microseconds(tokens: TokenRepository) -> None:
    instant = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    row = token(CANVAS, expires_at=instant, created_at=datetime(1, 1, 2, tzinfo=UTC))
    assert await tokens.insert(row) == row
    assert await tokens.get(CANVAS) == row


async def test_a_row_written_by_pulseplan_is_read(store: Store, tokens: TokenRepository) -> None:
    store.insert_raw(**raw_row(user_id=USER, metadata={"course_count": 4}))
    row = await tokens.get(CANVAS)
    assert isinstance(row, StoredToken)
    assert (row.status, row.refresh_ciphertext, row.encryption_scheme) == (TokenStatus.OK, None, None)
    assert (row.base_url, row.metadata, row.scopes) == ("https://canvas.example.edu", {"course_count": 4}, ())


@pytest.mark.parametrize(
    ("is_active", "metadata", "status"),
    [
        (False, {}, TokenStatus.NEEDS_REAUTH),
        (None, {}, TokenStatus.OK),
        (False, {"status": "ok"}, TokenStatus.NEEDS_REAUTH),
        (True, {"status": "revoked"}, TokenStatus.REVOKED),
        (True, {"status": "something new"}, TokenStatus.ERROR),
        (True, {"status": 7}, TokenStatus.ERROR),
    ],
)
async def test_the_more_cautious_status_wins(
    store: Store,
    tokens: TokenRepository,
    is_active: bool | None,
    metadata: dict[str, object],
    status: TokenStatus,
) -> None:
    store.insert_raw(**raw_row(user_id=USER, is_active=is_active, metadata=metadata))
    row = await tokens.get(CANVAS)
    assert isinstance(row, StoredToken)
    assert row.status is status


async def test_the_columns_hold_the_tokens_fields(store: Store, tokens: TokenRepository) -> None:
    await tokens.insert(
        token(CANVAS, status=TokenStatus.REVOKED, status_reason="gone", base_url="https://c.test", metadata={"a": 1})
    )
    row = store.rows()[0]
    assert row["is_active"] is False
    assert row["provider_url"] == "https://c.test"
    assert row["metadata"] == {
        "a": 1,
        "base_url": "https://c.test",
        "status": "revoked",
        "status_reason": "gone",
        "encryption_method": "aes256-gcm-v1",
    }
