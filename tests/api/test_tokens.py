"""One token of one user over HTTP, on every store."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import ON_EVERY_STORE, problem
from tests.support.api.service import Service
from tests.support.paths import VECTORS
from tests.support.stores.stores import Store, raw_row
from tests.support.waiting import eventually

pytestmark = ON_EVERY_STORE
USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
TOKENS = f"/v1/users/{USER}/tokens"
CANVAS = f"{TOKENS}/canvas"
GOOGLE = f"{TOKENS}/google"
_LONG_AGO = "2020-01-01T00:00:00Z"
_VECTORS = json.loads((VECTORS / "pulseplan_local_tokens.json").read_text())


def test_a_stored_token_is_revealed(client: httpx.Client, served_store: Store) -> None:
    given = {
        "access_token": "ya29.access",
        "refresh_token": "1//refresh",
        "expires_at": "2027-03-23T09:00:00.123456+02:00",
        "scopes": ["https://www.googleapis.com/auth/calendar", "openid"],
        "email": "student@example.edu",
        "base_url": "https://www.googleapis.com",
        "metadata": {"calendar": "primary", "n": 1.0, "big": 1e300, "small": 0.1, "none": None},
    }
    stored = client.put(GOOGLE, json=given, params={"service_type": "calendar"})
    assert stored.status_code == 201, stored.text
    body = stored.json()
    assert stored.headers["etag"] == f'"{body["version"]}"'
    assert abs(body["version"] / 1000 - time.time()) < 600, "the milliseconds since 1970"
    assert "ya29" not in stored.text
    assert "1//" not in stored.text

    revealed = client.get(GOOGLE, params={"service_type": "calendar", "include": "refresh_token"})
    assert revealed.status_code == 200
    assert revealed.headers["etag"] == stored.headers["etag"]
    assert revealed.json() == {
        **body,
        "min_ttl_met": True,
        "access_token": "ya29.access",
        "refresh_token": "1//refresh",
    }
    assert body["expires_at"] == "2027-03-23T07:00:00.123456Z"
    assert body["metadata"] == given["metadata"]
    assert body["has_refresh_token"] is True
    assert (body["status"], body["service_type"]) == ("ok", "calendar")
    assert body["encryption_method"] == "aes256-gcm-v1"

    assert "refresh_token" not in client.get(GOOGLE, params={"service_type": "calendar"}).json()
    problem(client.get(GOOGLE), 404, "token_not_found")
    row = served_store.rows()[0]
    assert row["access_token"].startswith("v1:")
    assert row["refresh_token"].startswith("v1:")
    assert row["encryption_scheme"] == "local:v1"
    assert "ya29" not in repr(row)


def test_storing_again_replaces_the_whole_token(client: httpx.Client) -> None:
    first = client.put(CANVAS, json={"access_token": "one", "refresh_token": "r", "email": "a@b", "metadata": {"a": 1}})
    client.patch(CANVAS, json={"status": "revoked", "status_reason": "why"})
    second = client.put(CANVAS, json={"access_token": "two"})
    assert (first.status_code, second.status_code) == (201, 200)
    body = second.json()
    assert (body["email"], body["metadata"], body["has_refresh_token"]) == (None, {}, False)
    assert (body["status"], body["status_reason"]) == ("ok", None)
    assert body["created_at"] == first.json()["created_at"]
    assert client.get(CANVAS).json()["access_token"] == "two"


def test_expires_in_counts_from_now(client: httpx.Client) -> None:
    before = datetime.now(UTC)
    body = client.put(GOOGLE, json={"access_token": "x", "expires_in": 3600}).json()
    expires_at = datetime.fromisoformat(body["expires_at"])
    assert before + timedelta(seconds=3599) < expires_at < datetime.now(UTC) + timedelta(seconds=3601)


@pytest.mark.parametrize(
    ("given", "days"),
    [
        ({}, 120),
        ({"refresh_token": None}, 120),
        ({"expires_at": None}, 120),
        ({"expires_in": 86_400}, 1),
        ({"refresh_token": "r"}, None),
    ],
)
def test_a_manual_canvas_token_expires_after_120_days_by_default(
    client: httpx.Client, given: dict[str, object], days: int | None
) -> None:
    expires_at = client.put(CANVAS, json={"access_token": "x", **given}).json()["expires_at"]
    if days is None:
        assert expires_at is None
    else:
        left = datetime.fromisoformat(expires_at) - datetime.now(UTC)
        assert timedelta(days=days) - timedelta(minutes=1) < left <= timedelta(days=days)


def test_rotating_keeps_what_is_not_given(client: httpx.Client) -> None:
    given: dict[str, object] = {
        "access_token": "one",
        "refresh_token": "r1",
        "expires_at": "2027-01-01T00:00:00Z",
        "scopes": ["a"],
        "email": "a@b",
        "base_url": "https://x.test",
        "metadata": {"a": 1},
    }
    first = client.put(GOOGLE, json=given).json()
    rotated = client.post(f"{GOOGLE}/rotate", json={"access_token": "two"})
    assert rotated.status_code == 200
    assert rotated.headers["etag"] == f'"{first["version"] + 1}"'
    changing = {"version", "updated_at", "last_refreshed"}
    assert {k: v for k, v in rotated.json().items() if k not in changing} == {
        k: v for k, v in first.items() if k not in changing
    }
    revealed = client.get(GOOGLE, params={"include": "refresh_token"}).json()
    assert (revealed["access_token"], revealed["refresh_token"]) == ("two", "r1")


def test_rotating_replaces_what_is_given_and_clears_what_is_null(client: httpx.Client) -> None:
    client.put(GOOGLE, json={"access_token": "one", "refresh_token": "r1", "email": "a@b", "scopes": ["a"]})
    given: dict[str, object] = {
        "access_token": "two",
        "refresh_token": "r2",
        "email": None,
        "scopes": [],
        "expires_in": 60,
    }
    body = client.post(f"{GOOGLE}/rotate", json=given).json()
    assert (body["email"], body["scopes"]) == (None, [])
    assert body["expires_at"] is not None
    assert client.get(GOOGLE, params={"include": "refresh_token"}).json()["refresh_token"] == "r2"
    client.post(f"{GOOGLE}/rotate", json={"access_token": "three", "refresh_token": None})
    assert client.get(GOOGLE, params={"include": "refresh_token"}).json()["refresh_token"] is None


def test_only_an_existing_token_is_rotated_patched_or_deleted(client: httpx.Client, served_store: Store) -> None:
    problem(client.post(f"{CANVAS}/rotate", json={"access_token": "x"}), 404, "token_not_found")
    problem(client.patch(CANVAS, json={"status": "ok"}), 404, "token_not_found")
    problem(client.delete(CANVAS), 404, "token_not_found")
    problem(client.get(CANVAS), 404, "token_not_found")
    assert served_store.rows() == []


@pytest.mark.parametrize("status", ["needs_reauth", "revoked", "error"])
def test_an_inactive_token_keeps_its_secret(client: httpx.Client, served_store: Store, status: str) -> None:
    first = client.put(CANVAS, json={"access_token": "secret-one"}).json()["version"]
    patched = client.patch(CANVAS, json={"status": status, "status_reason": "the provider said no"})
    assert (patched.status_code, patched.json()["status_reason"]) == (200, "the provider said no")
    assert patched.headers["etag"] == f'"{first + 1}"'
    body = problem(client.get(CANVAS), 409, "token_inactive")
    assert status in str(body["detail"])
    assert served_store.rows()[0]["is_active"] is False
    client.post(f"{CANVAS}/rotate", json={"access_token": "secret-two"})
    problem(client.get(CANVAS), 409, "token_inactive")
    assert client.patch(CANVAS, json={"status": "ok"}).json()["status_reason"] is None
    assert client.get(CANVAS).json()["access_token"] == "secret-two"


def test_patching_metadata_merges_and_null_removes(client: httpx.Client) -> None:
    client.put(CANVAS, json={"access_token": "x", "metadata": {"a": 1, "b": {"c": 2}, "d": 3}})
    body = client.patch(CANVAS, json={"metadata": {"a": None, "b": {"e": 4}, "f": 5}}).json()
    assert body["metadata"] == {"b": {"e": 4}, "d": 3, "f": 5}
    assert client.get(CANVAS).json()["access_token"] == "x"


def test_larger_metadata_of_pulseplan_is_kept(client: httpx.Client, served_store: Store) -> None:
    vector = _VECTORS[0]["vectors"][0]
    large = {"a": "x" * 9000, "b": 1}
    row = raw_row(user_id=vector["user_id"], access_token=vector["ciphertext"], metadata=large)
    served_store.insert_raw(**row)
    path = f"/v1/users/{vector['user_id']}/tokens/canvas"
    assert client.post(f"{path}/rotate", json={"access_token": "new"}).json()["metadata"] == large
    assert client.patch(path, json={"status": "error"}).status_code == 200
    problem(client.patch(path, json={"metadata": {"c": 2}}), 422, "invalid_request")
    assert client.patch(path, json={"metadata": {"b": None}}).json()["metadata"] == {"a": "x" * 9000}
    problem(client.post(f"{path}/rotate", json={"access_token": "x", "metadata": large}), 422, "invalid_request")


def test_a_misspelt_parameter_deletes_nothing(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json={"access_token": "x"})
    for query in ("servicetype=calendar", "service_type=a&service_type=b", "include=refresh_token&x"):
        problem(client.delete(f"{CANVAS}?{query}"), 422, "invalid_request")
    assert len(served_store.rows()) == 1


def test_deleting_forgets_the_token(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json={"access_token": "x"})
    client.put(GOOGLE, json={"access_token": "y"})
    deleted = client.delete(CANVAS)
    assert (deleted.status_code, deleted.content) == (204, b"")
    problem(client.get(CANVAS), 404, "token_not_found")
    assert [row["provider"] for row in served_store.rows()] == ["google"]


def test_a_user_is_listed_without_secrets_and_erased_whole(client: httpx.Client, served_store: Store) -> None:
    assert client.get(TOKENS).json() == {"tokens": []}
    for path, kind in ((CANVAS, "default"), (GOOGLE, "gmail"), (GOOGLE, "calendar")):
        client.put(path, json={"access_token": "hidden-secret"}, params={"service_type": kind})
    client.put(f"/v1/users/{uuid4()}/tokens/canvas", json={"access_token": "somebody else's"})
    listed = client.get(TOKENS)
    assert "hidden" not in listed.text
    assert [(one["provider"], one["service_type"]) for one in listed.json()["tokens"]] == [
        ("canvas", "default"),
        ("google", "calendar"),
        ("google", "gmail"),
    ]
    assert client.delete(TOKENS).json() == {"deleted": 3}
    assert client.delete(TOKENS).json() == {"deleted": 0}
    assert len(served_store.rows()) == 1


def test_user_ids_are_case_insensitive(client: httpx.Client) -> None:
    client.put(CANVAS.replace(USER, USER.upper()), json={"access_token": "x"})
    assert client.get(CANVAS).json()["user_id"] == USER


def test_a_batch_answers_each_in_order(client: httpx.Client, service: Service) -> None:
    others = [str(uuid4()) for _ in range(98)]
    for number, user in enumerate(others[:5]):
        client.put(f"/v1/users/{user}/tokens/canvas", json={"access_token": f"t{number}", "refresh_token": "r"})
    client.put(GOOGLE, json={"access_token": "x"})
    client.patch(GOOGLE, json={"status": "revoked"})
    asked = [{"user_id": user, "provider": "canvas"} for user in others]
    asked += [{"user_id": USER, "provider": "google"}, {**asked[0], "service_type": "other"}]
    answer = client.post("/v1/tokens/batch-get", json={"tokens": asked})
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert len(results) == 100
    assert [one["token"]["access_token"] for one in results[:5]] == ["t0", "t1", "t2", "t3", "t4"]
    assert {one["problem"]["code"] for one in (*results[5:98], results[99])} == {"token_not_found"}
    assert (results[98]["problem"]["code"], results[98]["problem"]["status"]) == ("token_inactive", 409)
    assert "refresh_token" not in results[0]["token"]
    with_refresh = client.post("/v1/tokens/batch-get", json={"tokens": asked[:1], "include": "refresh_token"}).json()
    assert with_refresh["results"][0]["token"]["refresh_token"] == "r"
    with service.client("canvas") as limited:
        results = limited.post("/v1/tokens/batch-get", json={"tokens": [asked[98], asked[0]]}).json()["results"]
        assert results[0]["problem"]["code"] == "forbidden"
        assert results[1]["token"]["access_token"] == "t0"
        only_forbidden = limited.post("/v1/tokens/batch-get", json={"tokens": [asked[98]]}).json()["results"]
        assert only_forbidden[0]["problem"]["code"] == "forbidden"


def test_a_row_that_pulseplan_wrote_is_revealed_and_rotated(client: httpx.Client, served_store: Store) -> None:
    vector = _VECTORS[0]["vectors"][0]
    row = raw_row(user_id=vector["user_id"], access_token=vector["ciphertext"], refresh_token="", metadata={"a": 1})
    served_store.insert_raw(**row)
    path = f"/v1/users/{vector['user_id']}/tokens/canvas"
    # a busy machine may take longer over the first PBKDF2 than a caller waits
    eventually(lambda: client.get(path).status_code == 200)
    body = client.get(path, params={"include": "refresh_token"}).json()
    assert (body["access_token"], body["refresh_token"]) == (vector["plaintext"], None)
    assert (body["version"], body["encryption_method"], body["has_refresh_token"]) == (1, None, False)
    patched = client.patch(path, json={"metadata": {"b": 2}}).json()
    assert patched["metadata"] == {"a": 1, "b": 2}
    assert served_store.rows()[0]["access_token"] == vector["ciphertext"]
    client.post(f"{path}/rotate", json={"access_token": "new"})
    assert client.get(path).json()["access_token"] == "new"
    assert served_store.rows()[0]["encryption_scheme"] == "local:v1"


def test_rotating_rewraps_a_refresh_token_of_an_older_format(client: httpx.Client, served_store: Store) -> None:
    access, refresh = _VECTORS[0]["vectors"][0], _VECTORS[0]["vectors"][1]
    assert access["user_id"] == refresh["user_id"]
    row = raw_row(user_id=access["user_id"], access_token=access["ciphertext"], refresh_token=refresh["ciphertext"])
    served_store.insert_raw(**row)
    path = f"/v1/users/{access['user_id']}/tokens/canvas"
    assert client.post(f"{path}/rotate", json={"access_token": "new"}).status_code == 200
    stored = served_store.rows()[0]["refresh_token"]
    assert stored.startswith("v1:")
    assert stored.count(":") == 1
    assert client.get(path, params={"include": "refresh_token"}).json()["refresh_token"] == refresh["plaintext"]


@pytest.mark.parametrize(
    ("ciphertext", "code"),
    [
        ("nonsense", "malformed_ciphertext"),
        ("v1:" + "A" * 120, "malformed_ciphertext"),
        ("v1:AQ" + "A" * 120, "integrity"),
        ("v9:AQ" + "A" * 120, "key_denied"),
        ('kms:{"fmt":1}', "key_denied"),
    ],
)
def test_an_unreadable_row_is_reported_and_left_as_it_is(
    client: httpx.Client, served_store: Store, ciphertext: str, code: str
) -> None:
    served_store.insert_raw(**raw_row(user_id=USER, access_token=ciphertext))
    before = served_store.rows()
    problem(client.get(CANVAS), 500, code)
    assert served_store.rows() == before
    assert client.get(TOKENS).status_code == 200
    assert client.put(CANVAS, json={"access_token": "fresh"}).status_code == 200
    assert client.get(CANVAS).json()["access_token"] == "fresh"


def test_a_ciphertext_moved_to_another_row_is_refused(client: httpx.Client, served_store: Store) -> None:
    client.put(CANVAS, json={"access_token": "mine", "refresh_token": "r"})
    stolen = served_store.rows()[0]
    victim = str(uuid4())
    served_store.insert_raw(**raw_row(user_id=victim, access_token=stolen["access_token"], provider_url=None))
    served_store.insert_raw(
        **raw_row(user_id=USER, provider="google", access_token=stolen["access_token"], provider_url=None)
    )
    served_store.insert_raw(
        **raw_row(user_id=USER, service_type="b", access_token=stolen["refresh_token"], provider_url=None)
    )
    problem(client.get(f"/v1/users/{victim}/tokens/canvas"), 500, "integrity")
    problem(client.get(GOOGLE), 500, "integrity")
    problem(client.get(CANVAS, params={"service_type": "b"}), 500, "integrity")


def test_an_expired_token_is_revealed_with_its_expiry(client: httpx.Client) -> None:
    """Whether an expired access token is still of use, say with its refresh token, is the caller's to know."""
    client.put(GOOGLE, json={"access_token": "x", "expires_at": _LONG_AGO})
    assert client.get(GOOGLE).json()["expires_at"] == _LONG_AGO


@pytest.mark.parametrize("size", [1, 16_384])
def test_tokens_of_every_allowed_size_fit(client: httpx.Client, size: int) -> None:
    token = "😀" * size if size == 1 else "x" * size
    client.put(CANVAS, json={"access_token": token, "refresh_token": token})
    revealed = client.get(CANVAS, params={"include": "refresh_token"}).json()
    assert (revealed["access_token"], revealed["refresh_token"]) == (token, token)
