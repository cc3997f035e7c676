"""Due tokens, on every store: which ones, in which order, page by page."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from app.tokens.due_tokens import DueBy, DueTokens
from app.tokens.models import RefreshState, StoredToken, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.stores.stores import NOW, Store, insert_all, token

HOUR = timedelta(hours=1)


def _due(by: DueBy, **changes: Any) -> DueTokens:
    columns: dict[str, Any] = {"provider": "canvas", "by": by, "before": NOW, "now": datetime.now(UTC)}
    return DueTokens(**(columns | changes))


async def _all(tokens: TokenRepository, due: DueTokens, *, limit: int = 2) -> list[str]:
    """Return the ids of every due token, page by page."""
    found, position = list[StoredToken](), None
    while True:
        page = await tokens.due_for_refresh(due, after=position, limit=limit)
        assert len(page.tokens) <= limit
        found += page.tokens
        position = page.next
        if position is None:
            return [row.id for row in found]


def _token(**changes: Any) -> StoredToken:
    columns: dict[str, Any] = {"refresh_ciphertext": "v1:refresh", "expires_at": NOW - HOUR, "last_refreshed": NOW}
    return token(**(columns | changes))


async def test_the_first_to_expire_comes_first_over_all_pages(tokens: TokenRepository) -> None:
    rows = [_token(expires_at=NOW - timedelta(seconds=number % 4 + 1)) for number in range(9)]
    await insert_all(tokens, [*rows, _token(expires_at=NOW), _token(expires_at=None)])
    in_order = sorted(rows, key=lambda row: (row.expires_at, row.id))
    assert await _all(tokens, _due(DueBy.EXPIRY)) == [row.id for row in in_order]
    assert await _all(tokens, _due(DueBy.EXPIRY, provider="notion")) == []


async def test_only_tokens_that_can_be_refreshed_now_are_due(store: Store, tokens: TokenRepository) -> None:
    good, failed, later, held, dead = _token(), _token(), _token(), _token(), _token()
    failed = _token(refresh_state=RefreshState(attempts=3, retry_at=NOW, failure="x"))
    later = _token(refresh_state=RefreshState(attempts=3, retry_at=datetime.now(UTC) + HOUR, failure="x"))
    others = [_token(refresh_ciphertext=None), _token(status=TokenStatus.NEEDS_REAUTH), _token(encryption_scheme=None)]
    await insert_all(tokens, [good, failed, later, held, dead, *others])
    assert await tokens.claim_refresh(held, holder=str(uuid4()), lease_seconds=600)
    assert await tokens.claim_refresh(dead, holder=str(uuid4()), lease_seconds=-600)
    assert await _all(tokens, _due(DueBy.EXPIRY)) == sorted([good.id, dead.id])
    assert await _all(tokens, _due(DueBy.EXPIRY, failed=True)) == [failed.id]
    store.update_raw(good.id, is_active=None)
    assert len(await _all(tokens, _due(DueBy.EXPIRY))) == 2, "is_active without a value is no status"


async def test_idle_tokens_and_tokens_without_an_expiry_are_found(tokens: TokenRepository) -> None:
    never, long = _token(expires_at=None, last_refreshed=NOW - HOUR), _token(last_refreshed=NOW - 2 * HOUR)
    await insert_all(tokens, [never, long, _token(expires_at=None)])
    assert await _all(tokens, _due(DueBy.UNKNOWN_EXPIRY)) == [never.id]
    assert await _all(tokens, _due(DueBy.IDLE), limit=1) == [long.id, never.id]


async def test_rows_that_do_not_decode_hide_no_others(store: Store, tokens: TokenRepository) -> None:
    rows = [_token(expires_at=NOW - timedelta(seconds=number + 1)) for number in range(6)]
    await insert_all(tokens, rows)
    for row in rows[1:5]:
        store.update_raw(row.id, version=-1)
    assert await _all(tokens, _due(DueBy.EXPIRY), limit=2) == [rows[5].id, rows[0].id]
