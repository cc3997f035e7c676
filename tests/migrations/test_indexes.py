"""A page of many tokens is read by an index, whatever it is filtered by."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest

from app.stores.postgres import statements
from app.tokens.models import TokenFilter, TokenStatus
from tests.support.stack.postgres import Database, Postgres

ROWS = """
insert into public.oauth_tokens (user_id, provider, access_token, encryption_scheme, expires_at, is_active, metadata)
select gen_random_uuid(), (array['google', 'microsoft', 'notion', 'canvas'])[1 + n % 4], 'v1:ciphertext',
       case when n % 2 = 0 then 'local:v1' end, '2027-01-01'::timestamptz + n * interval '1 minute', n % 1000 <> 0,
       case when n % 500 = 0 then '{"status": "revoked"}'::jsonb else '{"status": "ok"}'::jsonb end
from generate_series(1, 20000) as n
"""
AFTER = "80000000-0000-4000-8000-000000000000"
SOON = datetime(2027, 1, 1, 1, tzinfo=UTC)
NEVER = datetime(2028, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def filled(postgres: Postgres) -> Iterator[Database]:
    with postgres.new_database() as database:
        database.migrate()
        database.connection.execute(ROWS)
        database.sql("analyze public.oauth_tokens")
        yield database


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _require_index(database: Database, index: str, sql: str, arguments: Sequence[object]) -> None:
    with psycopg.RawCursor(database.connection) as cursor:
        cursor.execute(f"explain (format json, analyze, timing off) {sql}", arguments)
        [found] = cursor
    [[plan]] = found.values()
    nodes = list(_nodes(plan["Plan"]))
    assert index in {node.get("Index Name") for node in nodes}, plan
    assert not [node for node in nodes if node["Node Type"] == "Seq Scan"]
    read = sum(node["Actual Rows"] + node.get("Rows Removed by Filter", 0) for node in nodes if "Relation Name" in node)
    assert read <= 1_000, "of 20 000 rows"


@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        (TokenFilter(), "oauth_tokens_pkey"),
        (TokenFilter(providers=frozenset({"canvas", "notion"})), "oauth_tokens_pkey"),
        (TokenFilter(expires_before=SOON), "oauth_tokens_expires_at_id_idx"),
        (TokenFilter(expires_before=NEVER), "oauth_tokens_pkey"),
        (TokenFilter(providers=frozenset({"canvas"}), expires_before=SOON), "oauth_tokens_provider_expires_at_id_idx"),
        (TokenFilter(status=TokenStatus.OK), "oauth_tokens_pkey"),
        *(
            (TokenFilter(status=status), "oauth_tokens_status_id_idx")
            for status in (TokenStatus.NEEDS_REAUTH, TokenStatus.REVOKED, TokenStatus.ERROR)
        ),
        (TokenFilter(providers=frozenset({"canvas"}), status=TokenStatus.REVOKED), "oauth_tokens_status_id_idx"),
    ],
    ids=[
        "all",
        "two providers",
        "soon",
        "ever",
        "one provider soon",
        "ok",
        "needs_reauth",
        "revoked",
        "error",
        "one provider revoked",
    ],
)
def test_a_page_is_read_by_an_index(filled: Database, wanted: TokenFilter, index: str) -> None:
    sql, arguments = statements.find(wanted, after=AFTER)
    _require_index(filled, index, sql, [*arguments, 100])


@pytest.mark.parametrize(
    ("sql", "scheme", "index"),
    [
        (statements.PAGE, ["local:v1"], "oauth_tokens_encryption_scheme_id_idx"),
        (statements.PAGE_WITHOUT_SCHEME, [], "oauth_tokens_pkey"),
    ],
    ids=["scheme", "none"],
)
def test_a_page_of_a_sweep_is_read_by_an_index(filled: Database, sql: str, scheme: list[str], index: str) -> None:
    _require_index(filled, index, sql, [None, AFTER, 100, *scheme])
