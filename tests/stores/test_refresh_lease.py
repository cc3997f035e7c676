"""The lease of a refresh, on every store: claimed once, settled by its holder alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

from app.tokens import transitions
from app.tokens.models import RefreshState, Rewrap, StoredToken, TokenId, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import NOW, Store, SupabaseStore, token

GOOGLE = TokenId("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "google")


async def test_one_of_many_claims_gets_the_lease(tokens: TokenRepository) -> None:
    row = await _inserted(tokens)
    holders = [str(uuid4()) for _ in range(20)]
    claims = [tokens.claim_refresh(row, holder=holder, lease_seconds=60) for holder in holders]
    taken = [holder for holder, won in zip(holders, await asyncio.gather(*claims), strict=True) if won]
    assert len(taken) == 1
    assert await tokens.get(GOOGLE) == transitions.claimed(row, taken[0])


async def test_a_living_lease_is_not_taken_over(tokens: TokenRepository) -> None:
    claimed = await _claimed(tokens, await _inserted(tokens))
    assert not await tokens.claim_refresh(claimed, holder=str(uuid4()), lease_seconds=60)


async def test_a_lease_ends_by_the_stores_clock(tokens: TokenRepository) -> None:
    dead = await _claimed(tokens, await _inserted(tokens), lease_seconds=0)
    while not await tokens.claim_refresh(dead, holder=str(uuid4()), lease_seconds=60):
        pass  # until that clock shows a later time
    assert not await tokens.settle_refresh(dead, _refreshed(dead))
    row = await tokens.get(GOOGLE)
    assert isinstance(row, StoredToken)
    assert row.access_ciphertext == dead.access_ciphertext
    assert row.refresh_state.generation == 2


async def test_a_claim_is_for_the_row_as_it_was_read(tokens: TokenRepository) -> None:
    row = await _inserted(tokens)
    for stale in (
        replace(row, version=row.version + 1),
        replace(row, encryption_scheme="local:v2"),
        replace(row, encryption_scheme=None),
        replace(row, refresh_state=RefreshState(generation=1)),
        replace(row, refresh_state=RefreshState(holder=str(uuid4()))),
        replace(row, id=str(uuid4())),
    ):
        assert not await tokens.claim_refresh(stale, holder=str(uuid4()), lease_seconds=60), stale
    assert await tokens.get(GOOGLE) == row


async def test_a_settled_refresh_replaces_both_secrets(tokens: TokenRepository) -> None:
    claimed = await _claimed(tokens, await _inserted(tokens))
    after = _refreshed(claimed)
    assert await tokens.settle_refresh(claimed, after)
    assert await tokens.get(GOOGLE) == after
    assert not await tokens.settle_refresh(claimed, after)


async def test_a_patch_during_a_refresh_loses_nothing(tokens: TokenRepository) -> None:
    """The result is written beside a concurrent change of status and metadata, which stays."""
    claimed = await _claimed(tokens, await _inserted(tokens))
    patched = replace(
        claimed,
        status=TokenStatus.ERROR,
        status_reason="set by a caller",
        metadata={"n": None, "deep": {"x": [None]}},
        version=claimed.version + 1,
    )
    assert await tokens.replace(claimed, patched) is not None
    after = _refreshed(claimed)
    assert await tokens.settle_refresh(claimed, after)
    assert await tokens.get(GOOGLE) == replace(
        after,
        status=TokenStatus.ERROR,
        status_reason="set by a caller",
        metadata=patched.metadata,
        version=claimed.version + 2,
    )


async def test_a_write_of_a_secret_ends_the_lease(tokens: TokenRepository) -> None:
    """It must have read the row after the claim, which changes no version: the refresh token may be spent."""
    row = await _inserted(tokens)
    claimed = await _claimed(tokens, row)
    stored = replace(row, access_ciphertext="v1:stored", version=row.version + 1)
    assert await tokens.replace(row, stored) is None
    after = replace(stored, refresh_state=RefreshState(generation=claimed.refresh_state.generation))
    written = await tokens.replace(claimed, after)
    assert written is not None
    assert (written.access_ciphertext, written.refresh_state.holder) == ("v1:stored", None)
    assert not await tokens.settle_refresh(claimed, _refreshed(claimed))
    found = await tokens.get(GOOGLE)
    assert isinstance(found, StoredToken)
    assert found.access_ciphertext == "v1:stored"


async def test_a_deleted_token_does_not_come_back(tokens: TokenRepository) -> None:
    row = await _inserted(tokens)
    claimed = await _claimed(tokens, row)
    assert await tokens.delete(row)
    assert not await tokens.settle_refresh(claimed, _refreshed(claimed))
    again = replace(token(GOOGLE), id=str(uuid4()))
    assert await tokens.insert(again) == again
    assert not await tokens.settle_refresh(claimed, _refreshed(claimed))
    assert await tokens.get(GOOGLE) == again


async def test_a_failed_refresh_keeps_the_token_and_its_version(tokens: TokenRepository) -> None:
    claimed = await _claimed(tokens, await _inserted(tokens))
    failed = transitions.refresh_failed(claimed, "provider_unavailable", retry_at=NOW + timedelta(minutes=5))
    assert await tokens.settle_refresh(claimed, failed)
    assert await tokens.get(GOOGLE) == failed
    assert (failed.version, failed.refresh_state.attempts) == (claimed.version, 1)


async def test_a_refused_refresh_token_is_marked_in_every_column(store: Store, tokens: TokenRepository) -> None:
    claimed = await _claimed(tokens, await _inserted(tokens))
    marked = transitions.reauthentication_needed(claimed, "invalid_grant", now=NOW)
    assert await tokens.settle_refresh(claimed, marked)
    assert await tokens.get(GOOGLE) == marked
    [row] = store.rows()
    assert row["is_active"] is False
    assert row["metadata"]["status"] == "needs_reauth"


async def test_a_rewrap_during_a_refresh_keeps_the_lease(tokens: TokenRepository) -> None:
    row = await _inserted(tokens)
    claimed = await _claimed(tokens, row)
    rewrapped = replace(row, access_ciphertext="v2:a", refresh_ciphertext="v2:r", encryption_scheme="local:v2")
    assert await tokens.replace_ciphertexts([Rewrap(row, rewrapped)]) == {row.id}
    after = _refreshed(claimed)
    assert await tokens.settle_refresh(claimed, after)
    found = await tokens.get(GOOGLE)
    assert isinstance(found, StoredToken)
    assert found.refresh_ciphertext == after.refresh_ciphertext
    assert found.encryption_scheme == after.encryption_scheme


async def test_a_rewrap_to_another_key_during_a_refresh_leaves_one_scheme(tokens: TokenRepository) -> None:
    """The result is under the key that the row had at the claim, and the row must say so."""
    row = await _inserted(tokens)
    claimed = await _claimed(tokens, row)
    rewrapped = replace(
        row,
        access_ciphertext="v2:a",
        refresh_ciphertext="v2:r",
        encryption_scheme="local:v2",
        encryption_method="aes256-gcm-v2",
    )
    assert await tokens.replace_ciphertexts([Rewrap(row, rewrapped)]) == {row.id}
    after = replace(
        _refreshed(claimed),
        access_ciphertext="v1:new-access",
        refresh_ciphertext="v1:new-refresh",
        encryption_scheme=row.encryption_scheme,
        encryption_method=row.encryption_method,
    )
    assert await tokens.settle_refresh(claimed, after)
    assert await tokens.get(GOOGLE) == after


async def test_a_secret_of_another_program_ends_the_lease(supabase: SupabaseStack) -> None:
    """PulsePlan's own code raises no version; the trigger of the migrations sees its write."""
    async with SupabaseStore(supabase).open() as tokens:
        claimed = await _claimed(tokens, await _inserted(tokens))
        supabase.sql("update public.oauth_tokens set access_token = 'theirs' where id = %s", [claimed.id])
        assert not await tokens.settle_refresh(claimed, _refreshed(claimed))
    [row] = SupabaseStore(supabase).rows()
    assert row["access_token"] == "theirs"


async def _inserted(tokens: TokenRepository) -> StoredToken:
    row = token(GOOGLE, refresh_ciphertext="v1:refresh", metadata={"n": 1})
    assert await tokens.insert(row) == row
    return row


async def _claimed(tokens: TokenRepository, row: StoredToken, *, lease_seconds: int = 60) -> StoredToken:
    holder = str(uuid4())
    assert await tokens.claim_refresh(row, holder=holder, lease_seconds=lease_seconds)
    return transitions.claimed(row, holder)


def _refreshed(claimed: StoredToken) -> StoredToken:
    return replace(
        claimed,
        access_ciphertext="v2:new-access",
        refresh_ciphertext="v2:new-refresh",
        encryption_scheme="local:v2",
        encryption_method="aes256-gcm-v2",
        expires_at=NOW + timedelta(hours=1),
        refresh_token_expires_at=NOW + timedelta(days=90),
        scopes=("a", "b"),
        version=claimed.version + 1,
        updated_at=NOW + timedelta(seconds=1),
        last_refreshed=NOW + timedelta(seconds=1),
        refresh_state=RefreshState(generation=claimed.refresh_state.generation),
    )
