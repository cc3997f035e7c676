"""Supabase's public API shows the table to the service role only."""

from uuid import uuid4

import httpx
import pytest

from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.supabase import SupabaseStack

TABLE = "/rest/v1/oauth_tokens"
SEES_EVERY_ROW = "/rest/v1/rpc/token_vault_sees_every_row"


@pytest.fixture(params=["anon", "authenticated"])
def outsider(supabase: SupabaseStack, request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers of a browser, without and with a signed-in user."""
    bearer = {"anon": supabase.keys.anon, "authenticated": supabase.keys.authenticated}
    return {
        "apikey": supabase.keys.anon,
        "Authorization": f"Bearer {bearer[request.param]}",
        "Prefer": "return=representation",
    }


@pytest.fixture
def service(supabase: SupabaseStack) -> dict[str, str]:
    key = supabase.service_key
    return {"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"}


@pytest.fixture
def row(supabase: SupabaseStack) -> dict[str, object]:
    # belongs to the user of the authenticated key, who must not see it either
    supabase.sql(
        "insert into public.oauth_tokens (user_id, provider, access_token)"
        " values ('0d3b7a52-5c1a-4a6e-9b1f-3f2f1d7b9f10', 'canvas', 'v1:ciphertext')"
    )
    return all_rows(supabase)[0]


def all_rows(supabase: SupabaseStack) -> list[dict[str, object]]:
    return supabase.sql("select * from public.oauth_tokens")


def test_the_service_sees_and_changes_the_row(
    supabase: SupabaseStack, service: dict[str, str], row: dict[str, object]
) -> None:
    with httpx.Client(base_url=supabase.url, headers=service, verify=PLAIN_HTTP) as client:
        assert [each["id"] for each in client.get(TABLE).json()] == [str(row["id"])]
        changed = client.patch(TABLE, params={"version": "eq.1"}, json={"version": 2}).json()
        assert [each["version"] for each in changed] == [2]
        assert client.get(SEES_EVERY_ROW).json() is True
        assert client.post(SEES_EVERY_ROW).json() is True
        assert len(client.delete(TABLE, params={"version": "eq.2"}).json()) == 1
    assert all_rows(supabase) == []


@pytest.mark.usefixtures("row")
def test_outsiders_see_no_row(supabase: SupabaseStack, outsider: dict[str, str]) -> None:
    with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
        answer = client.get(TABLE)
        counted = client.head(TABLE, headers={"Prefer": "count=exact"})

    assert (answer.status_code, answer.json()) == (200, [])
    assert counted.headers["content-range"] == "*/0"


def test_outsiders_change_no_row(supabase: SupabaseStack, outsider: dict[str, str], row: dict[str, object]) -> None:
    unfiltered = {"id": "not.is.null"}
    with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
        updated = client.patch(TABLE, params=unfiltered, json={"access_token": "theirs"})
        deleted = client.delete(TABLE, params=unfiltered)

    assert (updated.status_code, updated.json()) == (200, [])
    assert (deleted.status_code, deleted.json()) == (200, [])
    assert all_rows(supabase) == [row]


@pytest.mark.parametrize("prefer", ["return=minimal", "resolution=merge-duplicates"])
def test_outsiders_add_no_row(
    supabase: SupabaseStack, outsider: dict[str, str], row: dict[str, object], prefer: str
) -> None:
    theirs = {"user_id": str(uuid4()), "provider": "canvas", "access_token": "theirs"}

    answer = httpx.post(f"{supabase.url}{TABLE}", json=theirs, headers=outsider | {"Prefer": prefer}, verify=PLAIN_HTTP)

    assert answer.status_code in {401, 403}
    assert answer.json()["code"] == "42501"
    assert all_rows(supabase) == [row]


def test_outsiders_learn_that_they_do_not_see_every_row(supabase: SupabaseStack, outsider: dict[str, str]) -> None:
    with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
        assert client.get(SEES_EVERY_ROW).json() is False
        assert client.post(SEES_EVERY_ROW).json() is False


def test_the_table_has_no_policies(supabase: SupabaseStack) -> None:
    assert supabase.sql("select policyname from pg_policies where tablename = 'oauth_tokens'") == []
