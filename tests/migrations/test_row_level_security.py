"""Supabase's public API shows the table to the vault's roles only."""

import re
import shlex
import subprocess
import sys
from uuid import uuid4

import httpx
import pytest

from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.postgres import MIGRATIONS
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually

TABLE = "/rest/v1/oauth_tokens"
SEES_EVERY_ROW = "/rest/v1/rpc/token_vault_sees_every_row"
RUN = "/rest/v1/rpc/run_anything"
INSUFFICIENT_PRIVILEGE = "42501"


@pytest.fixture(params=["anon", "authenticated"])
def outsider(supabase: SupabaseStack, request: pytest.FixtureRequest) -> dict[str, str]:
    """Headers of a browser, without and with a signed-in user."""
    bearer = {"anon": supabase.keys.anon, "authenticated": supabase.keys.authenticated}
    return {
        "apikey": supabase.keys.anon,
        "Authorization": f"Bearer {bearer[request.param]}",
        "Prefer": "return=representation",
    }


@pytest.fixture(params=["service_role", "token_vault"])
def service(supabase: SupabaseStack, request: pytest.FixtureRequest) -> dict[str, str]:
    key = {"service_role": supabase.keys.service, "token_vault": supabase.keys.vault}[request.param]
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


def require_refusal(answer: httpx.Response) -> None:
    assert answer.status_code in {401, 403}
    assert answer.json()["code"] == INSUFFICIENT_PRIVILEGE


def test_the_service_sees_and_changes_the_row(
    supabase: SupabaseStack, service: dict[str, str], row: dict[str, object]
) -> None:
    with httpx.Client(base_url=supabase.url, headers=service, verify=PLAIN_HTTP) as client:
        assert [each["id"] for each in client.get(TABLE).json()] == [str(row["id"])]
        changed = client.patch(TABLE, params={"version": f"eq.{row['version']}"}, json={"version": 2}).json()
        assert [each["version"] for each in changed] == [2]
        assert client.get(SEES_EVERY_ROW).json() is True
        assert client.post(SEES_EVERY_ROW).json() is True
        assert len(client.delete(TABLE, params={"version": "eq.2"}).json()) == 1
    assert all_rows(supabase) == []


def test_outsiders_may_not_read_or_change_rows(
    supabase: SupabaseStack, outsider: dict[str, str], row: dict[str, object]
) -> None:
    unfiltered = {"id": "not.is.null"}
    with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
        require_refusal(client.get(TABLE))
        require_refusal(client.get(TABLE, params={"select": "id"}))
        require_refusal(client.patch(TABLE, params=unfiltered, json={"access_token": "theirs"}))
        require_refusal(client.delete(TABLE, params=unfiltered))
    assert all_rows(supabase) == [row]


@pytest.mark.parametrize("prefer", ["return=minimal", "resolution=merge-duplicates"])
def test_outsiders_add_no_row(
    supabase: SupabaseStack, outsider: dict[str, str], row: dict[str, object], prefer: str
) -> None:
    theirs = {"user_id": str(uuid4()), "provider": "canvas", "access_token": "theirs"}

    answer = httpx.post(f"{supabase.url}{TABLE}", json=theirs, headers=outsider | {"Prefer": prefer}, verify=PLAIN_HTTP)

    require_refusal(answer)
    assert all_rows(supabase) == [row]


def test_outsiders_cannot_truncate_through_a_function(
    supabase: SupabaseStack, outsider: dict[str, str], row: dict[str, object]
) -> None:
    """A project may have a function that runs the SQL it is given, with the rights of its caller."""
    supabase.sql(
        "create function public.run_anything(statement text) returns void language plpgsql"
        " as $$ begin execute statement; end $$"
    )
    try:
        supabase.sql("notify pgrst, 'reload schema'")
        with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
            eventually(lambda: client.post(RUN, json={"statement": "select 1"}).is_success)
            require_refusal(client.post(RUN, json={"statement": "truncate public.oauth_tokens"}))
    finally:
        supabase.sql("drop function public.run_anything")
        supabase.sql("notify pgrst, 'reload schema'")
    assert all_rows(supabase) == [row]


def test_outsiders_may_not_call_the_vaults_functions(supabase: SupabaseStack, outsider: dict[str, str]) -> None:
    arguments = {
        "token_vault_sees_every_row": {},
        "token_vault_schemes": {},
        "token_vault_census": {},
        "token_vault_access_findings": {},
        "token_vault_material": {"ciphertext": ""},
        "token_vault_replace_ciphertexts": {"changes": []},
    }
    with httpx.Client(base_url=supabase.url, headers=outsider, verify=PLAIN_HTTP) as client:
        for function, body in arguments.items():
            require_refusal(client.post(f"/rest/v1/rpc/{function}", json=body))


def test_the_table_has_no_policies(supabase: SupabaseStack) -> None:
    assert supabase.sql("select policyname from pg_policies where tablename = 'oauth_tokens'") == []


def test_the_readmes_command_makes_a_key_that_works(supabase: SupabaseStack) -> None:
    [command] = re.findall(r"^ *(python -c '.*')$", (MIGRATIONS / "README.md").read_text(), re.MULTILINE)
    _, program = shlex.split(command)[1:]
    made = subprocess.run(
        [sys.executable, "-c", program],
        env={"JWT_SECRET": supabase.keys.jwt_secret},
        capture_output=True,
        text=True,
        check=True,
    )
    key = made.stdout.strip()
    supabase.gateway.admit(key, authorization=f"Bearer {key}")
    with httpx.Client(base_url=supabase.url, headers={"apikey": key}, verify=PLAIN_HTTP) as client:
        assert client.get(SEES_EVERY_ROW).json() is True
        assert client.get(TABLE).json() == []
