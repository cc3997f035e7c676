"""Rows that another table references by a foreign key, on the stores whose database enforces it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import LiteralString

import httpx
import pytest

from app.errors import TokenReferenced
from app.tokens.models import Deletions, TokenId
from app.tokens.repository import TokenRepository
from tests.support.api.fixtures import problem
from tests.support.oauth.stand_in import oauth_stand_in
from tests.support.refresh import CALLER, HERE, USER, replicas
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import insert_all, token

RULES: dict[str, LiteralString] = {
    "no action": "",
    "restrict": "on delete restrict",
    "deferred": "deferrable initially deferred",
}
ON_DATABASES = pytest.mark.parametrize("store", ["postgres", "supabase"], indirect=True)


def _reference(stack: SupabaseStack, row_id: str) -> None:
    stack.sql("insert into public.sync_jobs values (%s)", [row_id])


@pytest.fixture
def jobs(supabase: SupabaseStack, request: pytest.FixtureRequest) -> Iterator[SupabaseStack]:
    """The stack with another table whose rows reference tokens; the parameter is the rule of the key."""
    rule: LiteralString = RULES[getattr(request, "param", "no action")]
    supabase.sql("create table public.sync_jobs (token_id uuid references public.oauth_tokens (id) " + rule + ")")
    yield supabase
    supabase.sql("drop table public.sync_jobs")


@ON_DATABASES
@pytest.mark.parametrize("jobs", RULES, indirect=True)
async def test_a_referenced_row_is_kept_and_named(jobs: SupabaseStack, tokens: TokenRepository) -> None:
    rows = [token(TokenId(USER, "google", f"s{number}")) for number in range(7)]
    await insert_all(tokens, rows)
    _reference(jobs, rows[2].id)
    with pytest.raises(TokenReferenced):
        await tokens.delete(rows[2])
    assert await tokens.delete_many(rows) == Deletions(6, (rows[2],))
    assert await tokens.list_for_user(USER) == [rows[2]]
    jobs.sql("delete from public.sync_jobs")
    assert await tokens.delete_many(rows) == Deletions(1)


@ON_DATABASES
async def test_a_key_that_cascades_deletes_the_reference(supabase: SupabaseStack, tokens: TokenRepository) -> None:
    supabase.sql("create table public.sync_jobs (token_id uuid references public.oauth_tokens (id) on delete cascade)")
    try:
        row = token()
        await tokens.insert(row)
        _reference(supabase, row.id)
        assert await tokens.delete(row)
        assert supabase.sql("select from public.sync_jobs") == []
    finally:
        supabase.sql("drop table public.sync_jobs")


@ON_DATABASES
async def test_a_revoked_token_that_is_referenced_reaches_nobody(jobs: SupabaseStack, tokens: TokenRepository) -> None:
    with oauth_stand_in() as provider:
        async with replicas(tokens, provider) as [replica]:
            refresh_token = provider.seed()
            row = await replica.store(refresh_token=refresh_token)
            _reference(jobs, row.id)
            with pytest.raises(TokenReferenced) as kept:
                await replica.revocation.delete(HERE, required=False, caller=CALLER)
            assert str(kept.value.receipt).count("revoked") == 2
            assert not provider.accepts(refresh_token)
            found = await replica.row()
            assert (found.status, found.refresh_state.holder) == ("revoked", None)
            erasure = await replica.revocation.erase(USER, required=True, caller=CALLER)
            assert (erasure.deleted, [one.row.id for one in erasure.kept]) == (0, [row.id])
            assert replica.trail.outcomes("erase_user") == ["intent", "token_referenced"]


@pytest.mark.parametrize("served", ["postgres", "supabase"], indirect=True)
def test_an_erasure_says_which_tokens_it_has_kept(jobs: SupabaseStack, client: httpx.Client) -> None:
    path = f"/v1/users/{USER}/tokens"
    stored = [
        client.put(f"{path}/{name}", json={"access_token": "x"}).json() for name in ("canvas", "google", "notion")
    ]
    _reference(jobs, stored[1]["id"])
    problem(client.delete(f"{path}/google"), 409, "token_referenced")
    kept = problem(client.delete(path), 409, "token_referenced")
    assert (kept["deleted"], "receipts" in kept) == (2, False)
    assert isinstance(kept["kept"], list)
    [one] = kept["kept"]
    assert (one["provider"], one["service_type"], one["version"]) == ("google", "default", stored[1]["version"])
    assert one["problem"]["code"] == "token_referenced"
    assert "1 of the user's tokens" in str(kept["detail"])
    assert [token["id"] for token in client.get(path).json()["tokens"]] == [stored[1]["id"]]
    with_receipts = problem(client.delete(path, params={"revoke": "true"}), 409, "token_referenced")
    assert with_receipts["receipts"] == [
        {
            "provider": "google",
            "service_type": "default",
            "access_token": "unsupported",
            "refresh_token": None,
            "deleted": False,
        }
    ]
    jobs.sql("delete from public.sync_jobs")
    assert client.delete(path).json() == {"deleted": 1}
