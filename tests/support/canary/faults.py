"""What fails while secrets are under way, and quotes them where it can."""

from __future__ import annotations

import json
from collections.abc import Callable
from uuid import uuid4

from tests.support.canary.traffic import Traffic
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import JSON_TYPE, Cut
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.stores import SqliteStore, Store, SupabaseStore, raw_row


def corrupt_rows(traffic: Traffic, store: Store) -> None:
    """Let rows hold secrets where ciphertexts belong, and have every operation meet them."""
    secret = traffic.marked.misplaced
    code = secret.encode().hex()
    package = {"fmt": 1, "kid": secret, "id": secret, "dk": secret, "cm": secret, "n": secret, "ct": secret}
    direct = {"algorithm": "KMS", "ciphertext": secret, "key_id": secret, "encryption_context": {secret: secret}}
    for ciphertext in (
        secret,
        f"v2:{secret}",
        f"v1:{code}",
        f"v1:{code[:32]}:{code[:32]}:{code}",
        f"{code[:32]}:{code[:32]}:{code}",
        f"kms:{json.dumps(package)}",
        f"kms:{json.dumps({**package, 'dk': 'AAAA', 'cm': 'A' * 43, 'n': 'A' * 16, 'ct': 'A' * 40})}",
        json.dumps(direct),
    ):
        row = raw_row(access_token=ciphertext, refresh_token=ciphertext, metadata={"note": traffic.marked.metadata})
        store.insert_raw(**row)
        _meet(traffic, str(row["user_id"]))
    odd = raw_row(access_token=secret, metadata={"status": secret, "kms_key_id": [secret], "encryption_method": {}})
    store.insert_raw(**odd)
    _meet(traffic, str(odd["user_id"]))
    if isinstance(store, SqliteStore):
        broken = raw_row(access_token=secret, scopes=f'["{secret}', metadata=f'{{"{secret}')
        store.insert_raw(**broken)
        _meet(traffic, str(broken["user_id"]))


def _meet(traffic: Traffic, user_id: str) -> None:
    canvas = f"/v1/users/{user_id}/tokens/canvas"
    traffic.send("GET", canvas, params={"include": "refresh_token"})
    traffic.send("POST", "/v1/tokens/batch-get", json={"tokens": [{"user_id": user_id, "provider": "canvas"}]})
    traffic.send("POST", f"{canvas}/rotate", json={"access_token": traffic.marked.rotated})
    traffic.send("POST", f"{canvas}/rewrap")


def failing_kms(traffic: Traffic, kms: Kms) -> None:
    """Fail in ways that quote what was asked; the last of them opens the breaker."""
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
    """Fail in ways that quote rows and requests."""
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


def failing_store(traffic: Traffic, store: Store) -> None:
    if isinstance(store, SupabaseStore):
        failing_supabase(traffic, store.stack)
    elif isinstance(store, SqliteStore):
        failing_sqlite(traffic, store)
