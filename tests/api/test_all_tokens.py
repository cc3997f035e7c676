"""GET /v1/tokens: the tokens of all users, a page at a time."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.api.cursors import CURSOR_PATTERN, cursor_after, row_id_of
from app.api.schemas.answers import MAXIMUM_ANSWER_BYTES
from app.errors import InvalidRequest
from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.stores.stores import SqliteStore, Store, raw_row

ALL = "/v1/tokens"


def _store(client: httpx.Client, provider: str = "canvas", **body: Any) -> dict[str, Any]:
    body = {"access_token": "1234~a-secret", "refresh_token": "a-refresh-secret", **body}
    stored = client.put(f"/v1/users/{uuid4()}/tokens/{provider}", json=body)
    assert stored.status_code == 201, stored.text
    found: dict[str, Any] = stored.json()
    return found


def _pages(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    pages: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        answer = client.get(ALL, params={**parameters, **cursor})
        assert answer.status_code == 200, answer.text
        assert "secret" not in answer.text
        pages.append(answer.json())
        if pages[-1]["next_cursor"] is None:
            return pages
        cursor = {"cursor": pages[-1]["next_cursor"]}


def _tokens(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    return [token for page in _pages(client, **parameters) for token in page["tokens"]]


def test_every_token_is_on_one_page_and_none_has_a_secret(client: httpx.Client) -> None:
    assert _pages(client) == [{"tokens": [], "next_cursor": None}]
    stored = sorted((_store(client) for _ in range(5)), key=lambda token: token["id"])
    pages = _pages(client, limit=2)
    assert [len(page["tokens"]) for page in pages] == [2, 2, 1, 0]
    assert _tokens(client) == stored
    last_of_page = stored.pop(1)
    after = pages[0]["next_cursor"]
    client.delete(f"/v1/users/{last_of_page['user_id']}/tokens/canvas")
    assert client.get(ALL, params={"cursor": after}).json()["tokens"] == stored[1:]
    assert _tokens(client) == stored


def test_tokens_are_filtered(client: httpx.Client) -> None:
    soon, later = "2027-01-01T00:00:00Z", "2028-01-01T00:00:00Z"
    canvas, google = _store(client, expires_at=soon), _store(client, "google", expires_at=later)
    broken = _store(client, "google", expires_at=None)
    path = f"/v1/users/{broken['user_id']}/tokens/google"
    assert client.patch(path, json={"status": "needs_reauth"}).status_code == 200
    for parameters, expected in (
        ({"provider": "canvas"}, [canvas]),
        ({"provider": "apple"}, []),
        ({"expires_before": later}, [canvas]),
        ({"expires_before": "2028-01-01T01:00:00.5+01:00"}, [canvas, google]),
        ({"status": "needs_reauth"}, [broken]),
        ({"status": "ok", "provider": "google"}, [google]),
        ({"status": "ok", "provider": "google", "expires_before": soon}, []),
    ):
        found = {token["id"] for token in _tokens(client, **parameters)}
        assert found == {token["id"] for token in expected}, parameters


def test_a_limited_key_sees_its_providers_alone(client: httpx.Client, service: Service) -> None:
    canvas, google = _store(client), _store(client, "google")
    with service.client("canvas") as limited:
        assert [token["id"] for token in _tokens(limited)] == [canvas["id"]]
        assert [token["id"] for token in _tokens(limited, provider="canvas", limit=1)] == [canvas["id"]]
        problem(limited.get(ALL, params={"provider": "google"}), 403, "forbidden")
        page = limited.get(ALL, params={"cursor": cursor_after("00000000-0000-4000-8000-000000000000")})
        assert google["id"] not in page.text
    with service.client("on_behalf_of") as user:
        problem(user.get(ALL), 403, "forbidden")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=501",
        "limit=-1",
        "limit=1.0",
        "limit=",
        "limit=\uff11",
        "status=gone",
        "status=OK",
        "provider=Canvas",
        "provider=",
        "expires_before=2027-01-01",
        "expires_before=yesterday",
        "expires_before=0001-01-01T00:00:00%2B23:59",
        "cursor=",
        "cursor=x",
        "cursor=%7E",
        "cursor=AAAAAAAAAAAAAAAAAAAAAB",
        "cursor=" + "A" * 4_000,
        "cursor=%00",
        "cursor='%3B+drop+table+oauth_tokens%3B--",
        "provider=canvas&provider=google",
        "expire_before=2027-01-01T00:00:00Z",
    ],
)
def test_a_wrong_parameter_is_refused(client: httpx.Client, query: str) -> None:
    problem(client.get(f"{ALL}?{query}"), 422, "invalid_request")


def test_a_cursor_of_another_store_is_refused_or_begins_elsewhere(client: httpx.Client, served_store: Store) -> None:
    _store(client)
    forged = client.get(ALL, params={"cursor": cursor_after("~no uuid \udcff")})
    if isinstance(served_store, SqliteStore):
        assert forged.json() == {"tokens": [], "next_cursor": None}
    else:
        problem(forged, 422, "invalid_request")


def test_a_page_ends_where_the_answer_is_full(client: httpx.Client) -> None:
    large: dict[str, Any] = {"metadata": {"note": "x" * 8_000}, "scopes": ["s" * 500] * 100}
    stored = {_store(client, **large)["id"] for _ in range(20)}
    pages = _pages(client)
    assert len(pages) == 3
    assert all(len(page["tokens"]) * 55_000 < MAXIMUM_ANSWER_BYTES + 55_000 for page in pages)
    listed = [token["id"] for page in pages for token in page["tokens"]]
    assert (len(listed), set(listed)) == (len(stored), stored)


def test_an_unreadable_row_is_reported_and_hides_no_other(client: httpx.Client, served_store: Store) -> None:
    stored = _store(client)
    deep: dict[str, Any] = {}
    for _ in range(70):
        deep = {"x": [deep]}
    served_store.insert_raw(**raw_row(metadata=deep))
    pages = _pages(client, limit=1)
    assert [token["id"] for page in pages for token in page["tokens"]] == [stored["id"]]
    [unreadable] = [one for page in pages for one in page.get("unreadable", ())]
    assert unreadable["problem"]["code"] == "store_misconfigured"


def test_a_list_leaves_an_event_without_a_user(client: httpx.Client, service: Service) -> None:
    with service.logged() as lines:
        client.get(ALL)
    [line] = [line for line in lines if line.get("route") == ALL]
    assert (line["operation"], line["outcome"], line.get("user_id")) == ("list", "success", None)


@pytest.mark.parametrize(
    "row_id",
    [
        *("bb6e3371-2c59-45c0-948f-b4be9dd8d560", "7DED0E7F-BD46-41B3-9146-D3DB278CCA2B"),
        *("A" * 36, "x", "é", "\udcff\udcfe", "a" * 200),
    ],
    ids=ascii,
)
def test_a_cursor_names_exactly_its_row(row_id: str) -> None:
    cursor = cursor_after(row_id)
    assert row_id_of(cursor) == row_id
    assert (re.fullmatch(CURSOR_PATTERN, cursor) is not None) is (row_id.islower() and len(row_id) == 36)
    with pytest.raises(InvalidRequest):
        row_id_of(cursor + "=")
