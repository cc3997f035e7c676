"""Bodies as generated clients and providers write them, and what a caller learns of a wrong one."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.api.token_response import TOKEN_RESPONSE
from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.stores.stores import SqliteStore

SECRET = "ya29.A0ARrdaM-9x"


@pytest.fixture
def client(sqlite_service: tuple[Service, SqliteStore]) -> Iterator[httpx.Client]:
    with sqlite_service[0].client() as client:
        yield client


@pytest.fixture
def google() -> str:
    return f"/v1/users/{uuid4()}/tokens/google"


def _errors(response: httpx.Response) -> dict[str, str]:
    body: Any = problem(response, 422, "invalid_request")
    return {one["field"]: one["message"] for one in body["errors"]}


def _left(token: Any) -> float:
    return (datetime.fromisoformat(token["expires_at"]) - datetime.now(UTC)).total_seconds()


def test_a_null_expiry_is_one_that_is_not_given(client: httpx.Client, google: str) -> None:
    for given in ({"expires_at": None}, {"expires_in": None}, {"expires_at": None, "expires_in": None}):
        assert client.put(google, json={"access_token": "x", **given}).json()["expires_at"] is None
        canvas = client.put(google.replace("google", "canvas"), json={"access_token": "x", **given}).json()
        assert timedelta(days=119).total_seconds() < _left(canvas), "the lifetime of a manual token"
    assert _left(client.put(google, json={"access_token": "x", "expires_at": None, "expires_in": 60}).json()) > 0
    given_at = {"access_token": "x", "expires_at": "2036-01-01T00:00:00Z", "expires_in": None}
    assert client.put(google, json=given_at).json()["expires_at"] == "2036-01-01T00:00:00Z"
    kept = client.post(f"{google}/rotate", json={"access_token": "y", "expires_at": None, "expires_in": None}).json()
    assert kept["expires_at"] == "2036-01-01T00:00:00Z"


def test_a_patch_takes_the_status_reason_that_the_answer_gives(client: httpx.Client, google: str) -> None:
    client.put(google, json={"access_token": "x"})
    change = {"status": "needs_reauth", "status_reason": "the user has revoked the grant"}
    patched = client.patch(google, json=change).json()
    assert {name: patched[name] for name in change} == change
    assert client.patch(google, json={"status": "ok", "status_reason": None}).json()["status_reason"] is None
    alone = {"metadata": {"a": 1}, "status_reason": None}
    assert _errors(client.patch(google, json=alone)) == {"body": "status_reason requires status"}


@pytest.mark.parametrize(
    ("name", "suggestions"),
    [
        ("accessToken", ["access_token"]),
        ("token", ["access_token", "refresh_token"]),
        ("expires", ["expires_in", "expires_at"]),
        ("user-name", []),
        ("scope", ["scopes"]),
    ],
)
def test_an_unknown_field_is_named_with_close_ones(
    client: httpx.Client, google: str, name: str, suggestions: list[str]
) -> None:
    response = client.put(google, json={"access_token": "x", name: SECRET})
    message = _errors(response)[name]
    assert message.startswith("is not a known field")
    assert [one for one in suggestions if one not in message] == []
    assert ("did you mean" in message) is bool(suggestions)
    assert SECRET not in response.text


@pytest.mark.parametrize("name", [SECRET, "CANARYz9x8SECRETw7v6TOKEN", "a" * 41, "1234~token", "abcDEF123", "ab\ncd"])
def test_an_unknown_field_that_may_be_a_secret_is_not_named(client: httpx.Client, google: str, name: str) -> None:
    response = client.put(google, json={"access_token": "x", name: 1})
    assert _errors(response) == {"body": "has an unknown field, whose name is not repeated here"}
    assert name not in response.text


def test_the_old_name_of_the_reason_leads_to_the_new_one(client: httpx.Client, google: str) -> None:
    client.put(google, json={"access_token": "x"})
    refused = _errors(client.patch(google, json={"status": "ok", "reason": "x"}))
    assert refused == {"reason": "is not a known field: did you mean status_reason?"}


def test_an_unknown_field_of_a_batch_item_is_named_with_its_place(client: httpx.Client) -> None:
    body = {"tokens": [{"user_id": str(uuid4()), "provider": "google", "serviceType": "x"}]}
    refused = _errors(client.post("/v1/tokens/batch-get", json=body))
    assert refused == {"tokens.0.serviceType": "is not a known field: did you mean service_type?"}


def test_a_wrong_value_is_answered_with_what_is_allowed(client: httpx.Client, google: str) -> None:
    client.put(google, json={"access_token": "x"})
    status = _errors(client.patch(google, json={"status": "fine"}))["status"]
    assert status == "must be one of: ok, needs_reauth, revoked, error"
    body = {"tokens": [{"user_id": str(uuid4()), "provider": "google"}], "include": "secret", "min_ttl": 100_000}
    assert _errors(client.post("/v1/tokens/batch-get", json=body)) == {
        "include": "must be one of: refresh_token",
        "min_ttl": "must be at most 86400",
    }
    limits = {"access_token": "", "expires_in": 0, "scopes": ["x" * 513]}
    assert _errors(client.put(google, json=limits)) == {
        "access_token": "must have at least 1 character",
        "expires_in": "must be at least 1",
        "scopes.0": "must have at most 512 characters",
    }


GOOGLE_ANSWER = {
    "access_token": SECRET,
    "expires_in": 3599,
    "refresh_token": "1//0g",
    "scope": "openid https://www.googleapis.com/auth/calendar.readonly",
    "token_type": "Bearer",
    "id_token": "eyJhbGciOi.J9.x",
}


def _put_answer(client: httpx.Client, path: str, answer: object) -> httpx.Response:
    return client.put(path, json=answer, headers={"Content-Type": TOKEN_RESPONSE})


def test_a_providers_own_token_answer_is_stored(client: httpx.Client, google: str) -> None:
    response = _put_answer(client, google, GOOGLE_ANSWER)
    assert response.status_code == 201, response.text
    stored = response.json()
    assert stored["scopes"] == ["openid", "https://www.googleapis.com/auth/calendar.readonly"]
    assert 3500 < _left(stored) < 3600
    revealed = client.get(google, params={"include": "refresh_token", "min_ttl": "0"}).json()
    assert (revealed["access_token"], revealed["refresh_token"]) == (SECRET, "1//0g")
    assert "eyJhbGciOi" not in repr(revealed)


def test_a_token_answer_rotates_and_keeps_what_it_omits(client: httpx.Client, google: str) -> None:
    _put_answer(client, google, GOOGLE_ANSWER)
    headers = {"Content-Type": TOKEN_RESPONSE}
    answer = {"access_token": "next", "token_type": "Bearer", "expires_in": "7200"}
    rotated = client.post(f"{google}/rotate", json=answer, headers=headers).json()
    assert 7100 < _left(rotated) < 7200
    assert len(rotated["scopes"]) == 2
    assert client.get(google, params={"include": "refresh_token"}).json()["refresh_token"] == "1//0g"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({}, {"expires_at": None, "scopes": [], "has_refresh_token": False}),
        ({"refresh_token": "", "scope": "", "expires_in": None}, {"has_refresh_token": False, "scopes": []}),
        ({"expires_in": "never", "scope": None}, {"expires_at": None}),
        ({"expires_in": 0}, {"expires_at": None}),
        ({"scope": ["a", "b"]}, {"scopes": ["a", "b"]}),
    ],
)
def test_a_lenient_token_answer_is_read_as_at_an_exchange(
    client: httpx.Client, google: str, answer: dict[str, Any], expected: dict[str, Any]
) -> None:
    stored = _put_answer(client, google, {"access_token": "x", **answer}).json()
    assert {name: stored[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("answer", "field"),
    [
        ({"error": "invalid_grant"}, "access_token"),
        ({"access_token": ""}, "access_token"),
        ({"access_token": "x", "expires_in": [SECRET]}, "expires_in"),
        ({"access_token": "x", "expires_in": True}, "expires_in"),
        ({"access_token": "x", "scope": 1}, "scope"),
        ({"access_token": "x", "refresh_token": {"a": SECRET}}, "refresh_token"),
        ({"access_token": "x", "base_url": "https://canvas.example.edu"}, "body"),
    ],
)
def test_a_token_answer_that_cannot_be_stored_is_refused(
    client: httpx.Client, google: str, answer: object, field: str
) -> None:
    response = _put_answer(client, google, answer)
    assert field in _errors(response)
    assert SECRET not in response.text
    assert client.get(google).status_code == 404


def test_a_token_answer_sent_as_json_is_told_its_media_type(client: httpx.Client, google: str) -> None:
    refused = _errors(client.put(google, json=GOOGLE_ANSWER))
    assert refused.keys() == {"scope", "token_type", "id_token"}
    assert TOKEN_RESPONSE in refused["token_type"]


def test_only_routes_that_store_take_a_token_answer(client: httpx.Client, google: str) -> None:
    client.put(google, json={"access_token": "x"})
    refused = client.patch(google, json={"status": "ok"}, headers={"Content-Type": TOKEN_RESPONSE})
    assert TOKEN_RESPONSE not in str(problem(refused, 400, "malformed_body")["detail"])
