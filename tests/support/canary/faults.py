"""Failures of the store and of KMS, whose error texts quote secrets."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import uuid4

from tests.support.canary.traffic import Traffic
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import JSON_TYPE, Cut
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore


def failing_kms(traffic: Traffic, kms: Kms) -> None:
    """Send requests while KMS answers with quotes of them; the last failure opens the breaker."""
    secret = traffic.marked.access
    refusal = json.dumps({"__type": "AccessDeniedException", "message": secret}).encode()
    strange = json.dumps({"__type": secret, "message": secret}).encode()
    faults: tuple[Callable[[], None], ...] = (
        lambda: kms.faults.answer(400, body=refusal, content_type=JSON_TYPE),
        lambda: kms.faults.answer(400, body=strange, content_type=JSON_TYPE),
        lambda: kms.faults.succeed_with({"KeyId": secret, "Plaintext": secret, "CiphertextBlob": secret}),
        lambda: kms.faults.answer(502, body=secret.encode()),
        lambda: kms.faults.cut(Cut.WITHIN_THE_ANSWER),
        kms.faults.down,
    )
    for fail in faults:
        fail()
        canvas = f"/v1/users/{uuid4()}/tokens/canvas"
        traffic.send("PUT", canvas, json=traffic.body())
        traffic.send("GET", "/readyz")
        kms.faults.clear()


def failing_supabase(traffic: Traffic, project: SupabaseStack) -> None:
    """Send every request while PostgREST answers with quotes of rows and requests."""
    secret = traffic.marked.access
    as_json = "application/json"
    quoting = json.dumps({"code": "23502", "message": secret, "details": secret, "hint": secret}).encode()
    faults: tuple[Callable[[], None], ...] = (
        project.faults.down,
        lambda: project.faults.answer(400, body=quoting, content_type=as_json),
        lambda: project.faults.answer(500, body=secret.encode()),
        lambda: project.faults.answer(200, body=json.dumps([{"id": secret}]).encode(), content_type=as_json),
        lambda: project.faults.answer(200, body=secret.encode(), content_type=as_json),
        lambda: project.faults.redirect("http://127.0.0.1:1/elsewhere"),
        lambda: project.faults.cut_before(resets=True),
        project.faults.cut_after_commit,
    )
    user_id = str(uuid4())
    for fail in faults:
        fail()
        traffic.every_route(user_id)
        project.faults.clear()


def failing_sqlite(traffic: Traffic, store: SqliteStore) -> None:
    elsewhere = store.path.with_name("vault.db.elsewhere")
    store.path.rename(elsewhere)
    try:
        traffic.every_route(str(uuid4()))
    finally:
        elsewhere.rename(store.path)


def failing_postgres(traffic: Traffic, project: SupabaseStack) -> None:
    """Send every request while PostgreSQL refuses writes with errors that quote the row."""
    user_id = str(uuid4())
    traffic.every_route(user_id)
    project.sql("alter table public.oauth_tokens add constraint quoting check (false) not valid")
    traffic.every_route(user_id)
    project.sql("alter table public.oauth_tokens drop constraint quoting")
    project.sql(
        "create function public.quote_row() returns trigger language plpgsql as $$ begin "
        "raise exception 'refused %', new using detail = new::text, hint = new.metadata::text; end $$"
    )
    project.sql(
        "create trigger quote_row before insert or update on public.oauth_tokens "
        "for each row execute function public.quote_row()"
    )
    traffic.every_route(user_id)
    project.sql("drop function public.quote_row cascade")
    project.sql("alter table public.oauth_tokens rename column metadata to renamed")
    traffic.every_route(user_id)
    project.sql("alter table public.oauth_tokens rename column renamed to metadata")


def failing_store(traffic: Traffic, store: Store) -> None:
    if isinstance(store, PostgresStore):
        failing_postgres(traffic, store.stack)
    elif isinstance(store, SupabaseStore):
        failing_supabase(traffic, store.stack)
    elif isinstance(store, SqliteStore):
        failing_sqlite(traffic, store)
