"""Answers and log lines of the PostgreSQL store while the database refuses writes with errors that quote the row."""

from __future__ import annotations

import json
from typing import Final, LiteralString
from uuid import uuid4

import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.stack.supabase import LOGIN_PASSWORD, SupabaseStack
from tests.support.stores.stores import PostgresStore

_SECRET: Final = "quoted-and-confidential"
_REFUSALS: Final[dict[str, tuple[LiteralString, LiteralString, int, str]]] = {
    "a constraint": (
        "alter table public.oauth_tokens add constraint quoting check (false) not valid",
        "alter table public.oauth_tokens drop constraint quoting",
        500,
        "store_misconfigured",
    ),
    "a trigger": (
        (
            "create function public.quote_row() returns trigger language plpgsql as $$ begin "
            "raise exception '%', new using detail = new::text, hint = new.metadata::text; end $$;"
            "create trigger quote_row before insert or update on public.oauth_tokens "
            "for each row execute function public.quote_row()"
        ),
        "drop function public.quote_row cascade",
        503,
        "store_unavailable",
    ),
}


@pytest.fixture
def service(supabase: SupabaseStack, postgres_service: tuple[Service, PostgresStore]) -> Service:
    del supabase  # reset
    return postgres_service[0]


@pytest.mark.parametrize("cause", _REFUSALS)
def test_an_error_that_quotes_the_row_reaches_nobody(service: Service, supabase: SupabaseStack, cause: str) -> None:
    refuse, allow, status, code = _REFUSALS[cause]
    path = f"/v1/users/{uuid4()}/tokens/canvas"
    body = {"access_token": "x", "email": f"{_SECRET}@example.org", "metadata": {"n": _SECRET}}
    supabase.sql(refuse)
    try:
        with service.logged() as lines, service.client() as client:
            answer = client.put(path, json=body)
            problem(answer, status, code)
    finally:
        supabase.sql(allow)
    for text in (answer.text, json.dumps(lines)):
        assert _SECRET not in text
        assert LOGIN_PASSWORD not in text
    assert supabase.sql("select id from public.oauth_tokens") == []
