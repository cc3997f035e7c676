"""A writer to the database cannot redirect a token, hide its key or move it: over HTTP, on both stores."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stores.stores import Store, raw_row
from tests.support.waiting import eventually

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
REFRESH = {"include": "refresh_token"}
URL = "https://canvas.example.edu"
EVIL = "https://attacker.example"
BODY: dict[str, Any] = {"access_token": "access", "refresh_token": "refresh", "base_url": URL}


def _row(store: Store) -> dict[str, Any]:
    [row] = store.rows()
    return row


def _edit(store: Store, *, metadata: dict[str, Any] | None = None, **columns: Any) -> None:
    row = _row(store)
    store.update_raw(str(row["id"]), metadata={**row["metadata"], **(metadata or {})}, **columns)


@pytest.mark.parametrize(
    ("metadata", "columns"),
    [
        ({"base_url": EVIL}, {}),
        ({"base_url": EVIL}, {"provider_url": EVIL}),
        ({"base_url": None}, {"provider_url": EVIL}),
        ({"base_url": 7}, {"provider_url": EVIL}),
        ({"base_url": ""}, {"provider_url": f"{URL}/"}),
        ({"base_url": None}, {"provider_url": None}),
        ({"base_url": URL.upper()}, {}),
    ],
)
def test_an_edited_base_url_makes_both_secrets_unreadable(
    client: httpx.Client, served_store: Store, metadata: dict[str, Any], columns: dict[str, Any]
) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, metadata=metadata, **columns)
    problem(client.get(CANVAS), 500, "integrity")
    problem(client.get(CANVAS, params=REFRESH), 500, "integrity")
    one = client.post("/v1/tokens/batch-get", json={"tokens": [{"user_id": USER, "provider": "canvas"}]}).json()
    assert one["results"][0]["problem"]["code"] == "integrity"
    problem(client.post(f"{CANVAS}/rewrap"), 500, "integrity")


def test_a_refresh_token_from_before_another_base_url_is_unreadable(client: httpx.Client, served_store: Store) -> None:
    """The access token beside it is in its place, so the refresh token must itself be bound to the URL."""
    client.put(CANVAS, json={**BODY, "base_url": EVIL})
    old = _row(served_store)["refresh_token"]
    client.put(CANVAS, json=BODY)
    _edit(served_store, refresh_token=old)
    assert client.get(CANVAS).json()["base_url"] == URL
    problem(client.get(CANVAS, params=REFRESH), 500, "integrity")


def test_an_added_base_url_makes_a_token_unreadable(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json={"access_token": "access"})
    _edit(served_store, provider_url=EVIL)
    problem(client.get(CANVAS), 500, "integrity")


def test_an_edited_provider_url_beside_the_bound_one_redirects_nothing(
    client: httpx.Client, served_store: Store
) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, provider_url=EVIL)
    assert client.get(CANVAS).json()["base_url"] == URL


def test_a_rotation_gives_no_new_secret_to_an_edited_base_url(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, metadata={"base_url": EVIL}, provider_url=EVIL)
    before = _row(served_store)
    new = {"access_token": "new", "refresh_token": "new"}
    problem(client.post(f"{CANVAS}/rotate", json=new), 500, "integrity")
    assert _row(served_store) == before
    assert client.post(f"{CANVAS}/rotate", json={**new, "base_url": URL}).status_code == 200
    assert client.get(CANVAS).json()["base_url"] == URL


@pytest.mark.parametrize("fault", ["unreadable", "removed"])
def test_a_rotation_of_a_row_without_a_base_url_needs_no_old_token(
    client: httpx.Client, served_store: Store, fault: str
) -> None:
    """The new secret gets no URL, so there is nothing that the old one would prove."""
    client.put(CANVAS, json={**BODY, "base_url": None} if fault == "unreadable" else BODY)
    if fault == "unreadable":
        _edit(served_store, access_token=legacy_ciphertext("old", str(uuid4())))
    else:
        _edit(served_store, metadata={"base_url": None}, provider_url=None)
    assert client.post(f"{CANVAS}/rotate", json={"access_token": "new", "refresh_token": "new"}).status_code == 200
    revealed = client.get(CANVAS, params=REFRESH).json()
    assert (revealed["access_token"], revealed["refresh_token"], revealed["base_url"]) == ("new", "new", None)
    _edit(served_store, metadata={"base_url": URL}, provider_url=URL)
    problem(client.get(CANVAS), 500, "integrity")


@pytest.mark.parametrize("base_url", [EVIL, None])
def test_a_rotation_to_another_base_url_drops_the_old_refresh_token(
    client: httpx.Client, served_store: Store, base_url: str | None
) -> None:
    client.put(CANVAS, json=BODY)
    rotated = client.post(f"{CANVAS}/rotate", json={"access_token": "new", "base_url": base_url}).json()
    assert (rotated["base_url"], rotated["has_refresh_token"]) == (base_url, False)
    assert _row(served_store)["refresh_token"] is None
    revealed = client.get(CANVAS, params=REFRESH).json()
    assert (revealed["access_token"], revealed["refresh_token"]) == ("new", None)


def test_a_rotation_that_repeats_the_base_url_keeps_the_refresh_token(client: httpx.Client) -> None:
    client.put(CANVAS, json=BODY)
    client.post(f"{CANVAS}/rotate", json={"access_token": "new", "base_url": URL})
    revealed = client.get(CANVAS, params=REFRESH).json()
    assert (revealed["access_token"], revealed["refresh_token"], revealed["base_url"]) == ("new", "refresh", URL)


@pytest.mark.parametrize(
    ("metadata", "provider_url", "answered"),
    [
        ({}, "http://canvas.example.edu", None),
        ({}, "canvas.example.edu", None),
        ({}, "javascript:alert(1)", None),
        ({}, f"https://canvas.example.edu/{'x' * 3000}", None),
        ({"base_url": "https://user:pass@canvas.example.edu"}, URL, None),
        ({"base_url": {"a": 1}}, URL, URL),
        ({"base_url": ""}, "", None),
    ],
    ids=["http", "host", "script", "long", "user", "object", "empty"],
)
def test_any_url_of_pulseplans_costs_no_token(
    client: httpx.Client, served_store: Store, metadata: dict[str, Any], provider_url: str, answered: str | None
) -> None:
    """The row is revealed, and after its rewrap, which binds what stands there, revealed again."""
    user = str(uuid4())
    path = f"/v1/users/{user}/tokens/canvas"
    row = raw_row(
        user_id=user,
        access_token=legacy_ciphertext("access", user),
        refresh_token=legacy_ciphertext("refresh", user),
        provider_url=provider_url,
        metadata=metadata,
    )
    served_store.insert_raw(**row)
    # a busy machine may take longer over the first PBKDF2 than a caller waits
    eventually(lambda: client.get(path).status_code == 200)
    first = client.get(path, params=REFRESH).json()
    assert (first["access_token"], first["refresh_token"], first["base_url"]) == ("access", "refresh", answered)
    assert client.get(f"/v1/users/{user}/tokens").json()["tokens"][0]["base_url"] == answered
    eventually(lambda: client.post(f"{path}/rewrap").status_code == 200)
    [rewrapped] = served_store.rows()
    assert rewrapped["encryption_scheme"] == "local:v1"
    again = client.get(path, params=REFRESH).json()
    assert (again["access_token"], again["refresh_token"], again["base_url"]) == ("access", "refresh", answered)
    served_store.update_raw(str(row["id"]), provider_url=EVIL, metadata={})
    problem(client.get(path), 500, "integrity")


@pytest.mark.parametrize("claim", ["local:v2", "kms:arn:aws:kms:eu-central-1:1:key/1", "nonsense", ""])
def test_a_row_that_names_another_scheme_is_an_integrity_error(
    client: httpx.Client, served_store: Store, claim: str
) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, encryption_scheme=claim)
    problem(client.get(CANVAS), 500, "integrity")
    problem(client.get(CANVAS, params=REFRESH), 500, "integrity")
    problem(client.post(f"{CANVAS}/rotate", json={"access_token": "new"}), 500, "integrity")


def test_an_old_format_under_a_current_claim_is_an_integrity_error(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, access_token=legacy_ciphertext("old", USER))
    problem(client.get(CANVAS), 500, "integrity")
    _edit(served_store, access_token="kms:{}")
    problem(client.get(CANVAS), 500, "malformed_ciphertext")


def test_a_row_without_a_scheme_makes_no_claim(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json=BODY)
    _edit(served_store, encryption_scheme=None)
    assert client.get(CANVAS).json()["access_token"] == "access"
