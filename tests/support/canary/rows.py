"""Rows that another program wrote: PulsePlan's ciphertexts, and secrets where ciphertexts belong."""

from __future__ import annotations

import json
import time
from typing import Final
from uuid import uuid4

from tests.support.canary.traffic import BOUND_SECONDS, Traffic
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.stores import SqliteStore, Store, raw_row
from tests.support.waiting import eventually

_ON_READ_SECONDS: Final = 10.0


def legacy_rows(traffic: Traffic, store: Store) -> None:
    """Reveal a row of each of PulsePlan's formats, which rewraps it, and rewrap another one by a request."""
    marked = traffic.marked

    def local(text: str, user_id: str) -> str:
        return legacy_ciphertext(text, user_id, master_key=marked.previous_key)

    def without_version(text: str, user_id: str) -> str:
        return local(text, user_id).removeprefix("v1:")

    canvas = []
    for encrypted in (local, without_version):
        for user_id in (str(uuid4()), str(uuid4())):
            access, refresh = encrypted(marked.access, user_id), encrypted(marked.refresh, user_id)
            store.insert_raw(**raw_row(user_id=user_id, access_token=access, refresh_token=refresh))
            canvas.append(f"/v1/users/{user_id}/tokens/canvas")
    for revealed, rewrapped in zip(canvas[::2], canvas[1::2], strict=True):
        token = traffic.send_until(200, "GET", revealed, params={"include": "refresh_token"}).json()
        assert (token["access_token"], token["refresh_token"]) == (marked.access, marked.refresh)
        traffic.send_until(200, "POST", f"{rewrapped}/rewrap")

    asks_again_at = time.monotonic() + _ON_READ_SECONDS

    def all_rewrapped() -> bool:
        if all(row["encryption_scheme"] is not None for row in store.rows()):
            return True
        if time.monotonic() > asks_again_at:  # a rewrap on read that met a time-out is not repeated for minutes
            for path in canvas[::2]:
                traffic.send("POST", f"{path}/rewrap")
        return False

    eventually(all_rewrapped, within_seconds=BOUND_SECONDS)


def corrupt_rows(traffic: Traffic, store: Store) -> None:
    """Read, rotate and rewrap rows that hold secrets where ciphertexts belong."""
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
        _use(traffic, str(row["user_id"]))
    odd = raw_row(access_token=secret, metadata={"status": secret, "kms_key_id": [secret], "encryption_method": {}})
    store.insert_raw(**odd)
    _use(traffic, str(odd["user_id"]))
    if isinstance(store, SqliteStore):
        broken = raw_row(access_token=secret, scopes=f'["{secret}', metadata=f'{{"{secret}')
        store.insert_raw(**broken)
        _use(traffic, str(broken["user_id"]))


def _use(traffic: Traffic, user_id: str) -> None:
    canvas = f"/v1/users/{user_id}/tokens/canvas"
    traffic.send("GET", canvas, params={"include": "refresh_token"})
    traffic.send("POST", "/v1/tokens/batch-get", json={"tokens": [{"user_id": user_id, "provider": "canvas"}]})
    traffic.send("POST", f"{canvas}/rotate", json={"access_token": traffic.marked.rotated})
    traffic.send("POST", f"{canvas}/rewrap")
