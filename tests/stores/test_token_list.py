"""The list of all users' tokens, on every store."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.errors import InvalidRequest
from app.tokens.models import StoredToken, TokenFilter, TokenId, TokenRow, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.stores.stores import NOW, SqliteStore, Store, insert_all, raw_row, token

EVERY = TokenFilter()


async def _pages(tokens: TokenRepository, wanted: TokenFilter = EVERY, *, limit: int = 2) -> list[list[TokenRow]]:
    found: list[list[TokenRow]] = []
    after = None
    while page := await tokens.find(wanted, after=after, limit=limit):
        found.append(page)
        after = page[-1].id
    return found


async def _ids(tokens: TokenRepository, wanted: TokenFilter) -> set[str]:
    return {row.id for page in await _pages(tokens, wanted) for row in page}


def _numbered(number: int, **changes: Any) -> StoredToken:
    return token(TokenId(str(uuid4()), "canvas"), id=str(UUID(int=number)), **changes)


async def test_pages_hold_every_token_once_in_the_order_of_ids(tokens: TokenRepository) -> None:
    rows = [_numbered(number) for number in range(1, 8)]
    await insert_all(tokens, rows[::-1])
    pages = await _pages(tokens)
    assert [len(page) for page in pages] == [2, 2, 2, 1]
    assert [row for page in pages for row in page] == rows
    assert await tokens.find(EVERY, after=str(UUID(int=99)), limit=2) == []


async def test_filters_combine(tokens: TokenRepository) -> None:
    soon, later = NOW + timedelta(days=1), NOW + timedelta(days=2)
    rows = {
        "canvas": token(expires_at=soon),
        "google": token(TokenId(str(uuid4()), "google"), expires_at=soon),
        "notion": token(TokenId(str(uuid4()), "notion"), expires_at=later, status=TokenStatus.NEEDS_REAUTH),
        "endless": token(expires_at=None, status=TokenStatus.REVOKED),
    }
    await insert_all(tokens, list(rows.values()))

    async def found(**wanted: Any) -> set[str]:
        ids = await _ids(tokens, TokenFilter(**wanted))
        return {name for name, row in rows.items() if row.id in ids}

    assert await found() == set(rows)
    assert await found(providers=frozenset({"canvas"})) == {"canvas", "endless"}
    assert await found(providers=frozenset({"canvas", "google"}), expires_before=later) == {"canvas", "google"}
    assert await found(providers=frozenset({"apple"})) == set()
    assert await found(expires_before=soon) == set()
    assert await found(expires_before=later + timedelta(seconds=1)) == {"canvas", "google", "notion"}
    assert await found(expires_before=later, status=TokenStatus.OK) == {"canvas", "google"}
    assert await found(status=TokenStatus.NEEDS_REAUTH, providers=frozenset({"notion"})) == {"notion"}


async def test_a_status_is_found_as_it_is_shown(store: Store, tokens: TokenRepository) -> None:
    """Whatever another program has left in metadata and in is_active."""
    await tokens.check()
    metadata: list[Any] = [
        {},
        [1],
        *({"status": one} for one in (*TokenStatus, None, "", "OK", "gone", 5, True, ["ok"], {})),
    ]
    actives = [True, False, None]
    store.insert_many_raw([raw_row(metadata=one, is_active=active) for one in metadata for active in actives])
    shown = {
        row.id: row.status for page in await _pages(tokens, limit=50) for row in page if isinstance(row, StoredToken)
    }
    assert len(shown) == len(metadata) * len(actives)
    for status in TokenStatus:
        expected = {row_id for row_id, one in shown.items() if one is status}
        assert await _ids(tokens, TokenFilter(status=status)) == expected, status
        assert expected


async def test_changes_between_pages_move_no_other_token(tokens: TokenRepository) -> None:
    rows = [_numbered(number, expires_at=NOW + timedelta(days=number)) for number in range(10, 20)]
    await insert_all(tokens, rows)
    first = await tokens.find(EVERY, after=None, limit=4)
    await tokens.delete(rows[3])  # the cursor's own row
    later = replace(rows[0], expires_at=NOW + timedelta(days=99), access_ciphertext="v1:new", version=2)
    await tokens.replace(rows[0], later)
    await tokens.replace(rows[5], replace(rows[5], status=TokenStatus.ERROR, version=2))
    await tokens.insert(_numbered(5))
    rest = await tokens.find(EVERY, after=first[-1].id, limit=50)
    assert [row.id for row in (*first, *rest)] == [row.id for row in rows]


async def test_an_id_that_no_row_can_have_is_refused(store: Store, tokens: TokenRepository) -> None:
    for forged in ("", "x", "0" * 40, "'; drop table oauth_tokens; --", str(uuid4()) + "\n", "\udcff"):
        if isinstance(store, SqliteStore):
            assert await tokens.find(EVERY, after=forged, limit=1) == []
        else:
            with pytest.raises(InvalidRequest):
                await tokens.find(EVERY, after=forged, limit=1)


async def test_an_unreadable_row_hides_no_other(store: Store, tokens: TokenRepository) -> None:
    row = token()
    await tokens.insert(row)
    depth = 80
    store.insert_raw(**raw_row(metadata={"x": _nested(depth)}))
    found = [one for page in await _pages(tokens) for one in page]
    assert len(found) == 2
    assert row in found


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value
