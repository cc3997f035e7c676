"""PulsePlan's own ciphertexts of the marked tokens, which are read and moved with success."""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import uuid4

from tests.support.canary.traffic import Traffic
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.stores import Store, raw_row

_PATIENCE_SECONDS = 10.0


def old_rows(traffic: Traffic, store: Store) -> None:
    """Reveal a row of each old format, which the service then moves by itself, and have another one moved."""
    marked = traffic.marked

    def local(text: str, user_id: str) -> str:
        return legacy_ciphertext(text, user_id, master_key=marked.previous_key)

    formats: tuple[Callable[[str, str], str], ...] = (
        local,
        lambda text, user_id: local(text, user_id).removeprefix("v1:"),
    )
    user_ids = [[str(uuid4()) for _ in range(2)] for _ in formats]
    for sealed, users in zip(formats, user_ids, strict=True):  # all before the first is moved, which locks the file
        for user_id in users:
            access, refresh = sealed(marked.access, user_id), sealed(marked.refresh, user_id)
            store.insert_raw(**raw_row(user_id=user_id, access_token=access, refresh_token=refresh))
    for revealed, moved in user_ids:
        answer = traffic.send("GET", _canvas(revealed), params={"include": "refresh_token"})
        assert answer.status_code == 200
        told = answer.json()
        assert (told["access_token"], told["refresh_token"]) == (marked.access, marked.refresh)
        assert traffic.send("POST", f"{_canvas(moved)}/rewrap").status_code == 200
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while any(row["encryption_scheme"] is None for row in store.rows()):
        assert time.monotonic() < deadline, "what was revealed is not moved"
        time.sleep(0.02)


def _canvas(user_id: str) -> str:
    return f"/v1/users/{user_id}/tokens/canvas"
