"""Calls on behalf of a user: with the user's own valid JWT exactly that user's tokens, without it nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.audit.trails import KEY_TEXT, files, members, verified
from tests.support.observability.exposed import scraped
from tests.support.process.wire import token_path
from tests.support.security.user_jwts import SECRET, new_signing_key, secret_jwt
from tests.support.stack.jwks import JwksEndpoint, jwks_endpoint
from tests.support.waiting import eventually

KEY = new_signing_key()
HEADER = "X-On-Behalf-Of"


@dataclass(frozen=True, slots=True)
class Acting:
    """A vault that verifies users' JWTs, and two users with a token each."""

    service: Service
    endpoint: JwksEndpoint
    audit: Path
    user: str
    other: str

    def client(self, jwt: str | None = None, *, key: str = "on_behalf_of") -> httpx.Client:
        client = self.service.client(key)
        if jwt is not None:
            client.headers[HEADER] = jwt
        return client

    def events(self) -> list[dict[str, Any]]:
        return members(files(self.audit))


def _batch(*user_ids: str) -> dict[str, Any]:
    return {"tokens": [{"user_id": user_id, "provider": "canvas"} for user_id in user_ids]}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, JwksEndpoint, Path]]:
    folder = tmp_path_factory.mktemp("on-behalf-of")
    audit = {"AUDIT_LOG": "audit/audit.jsonl", "AUDIT_KEY": KEY_TEXT, "AUDIT_SYNC": "always"}
    with jwks_endpoint(KEY) as endpoint, running_service(folder, endpoint.environment() | audit) as service:
        yield service, endpoint, folder / "audit"
        log = service.log.read_text()
    trail = b"".join(path.read_bytes() for path in files(folder / "audit")).decode()
    assert verified(files(folder / "audit")).is_intact
    for text in (log, trail):  # every JWT begins like this, and the signature of a JWT is in no other text
        assert "eyJ" not in text


@pytest.fixture
def acting(running: tuple[Service, JwksEndpoint, Path]) -> Acting:
    acting = Acting(*running, str(uuid4()), str(uuid4()))
    with acting.client(key="full") as client:
        for user_id in (acting.user, acting.other):
            assert client.put(token_path(user_id), json={"access_token": f"secret of {user_id}"}).status_code == 201
    return acting


# each call on one user's tokens, and its status with that user's JWT
CALLS: dict[str, tuple[int, Callable[[httpx.Client, str], httpx.Response]]] = {
    "reveal": (200, lambda client, user: client.get(token_path(user))),
    "list": (200, lambda client, user: client.get(f"/v1/users/{user}/tokens")),
    "batch": (200, lambda client, user: client.post("/v1/tokens/batch-get", json=_batch(user))),
    "store": (200, lambda client, user: client.put(token_path(user), json={"access_token": "x"})),
    "patch": (200, lambda client, user: client.patch(token_path(user), json={"metadata": {"a": 1}})),
    "rotate": (200, lambda client, user: client.post(f"{token_path(user)}/rotate", json={"access_token": "x"})),
    "rewrap": (200, lambda client, user: client.post(f"{token_path(user)}/rewrap")),
    "delete": (204, lambda client, user: client.delete(token_path(user))),
    "erase": (200, lambda client, user: client.delete(f"/v1/users/{user}/tokens")),
}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_the_users_own_jwt_opens_that_users_tokens_only(acting: Acting, name: str) -> None:
    status, call = CALLS[name]
    with acting.client(KEY.jwt(acting.user)) as client:
        refused = problem(call(client, acting.other), 403, "forbidden")
        assert "another user" in str(refused["detail"])
        assert refused["errors"] == [{"field": "x-on-behalf-of", "message": refused["detail"]}]
        assert call(client, acting.user.upper()).status_code == status
    with acting.client(key="full") as client:
        assert client.get(token_path(acting.other)).json()["access_token"] == f"secret of {acting.other}"


@every_call
def test_without_the_users_valid_jwt_no_call_passes(acting: Acting, name: str) -> None:
    user = acting.user
    wrong = [
        None,
        "",
        "null",
        f"Bearer {KEY.jwt(user)}",
        KEY.jwt(user, exp=1_700_000_000),
        KEY.jwt(user, iss="https://other.supabase.co/auth/v1"),
        KEY.jwt(user, aud="other"),
        secret_jwt(user),
        "eyJhbGciOiJub25lIn0.e30.",
    ]
    for jwt in wrong:
        with acting.client(jwt) as client:
            answer = CALLS[name][1](client, user)
        refused = problem(answer, 403, "forbidden")
        assert refused["errors"] == [{"field": "x-on-behalf-of", "message": refused["detail"]}]
    with acting.client(new_signing_key().jwt(user)) as client:
        answer = CALLS[name][1](client, user)
    assert answer.status_code in {403, 503}  # 503 if the issuer's keys have just been downloaded
    assert "secret of" not in answer.text
    with acting.client(key="full") as client:
        assert client.get(token_path(user)).json()["access_token"] == f"secret of {user}"


def test_two_jwts_are_refused(acting: Acting) -> None:
    with acting.client() as client:
        headers = [(HEADER, KEY.jwt(acting.user)), (HEADER, KEY.jwt(acting.user))]
        problem(client.get(token_path(acting.user), headers=headers), 403, "forbidden")


def test_a_batch_with_one_item_of_another_user_is_refused_whole(acting: Acting) -> None:
    """Its event names the first user whom the call may not reach."""
    with acting.client(KEY.jwt(acting.user)) as client:
        answer = client.post("/v1/tokens/batch-get", json=_batch(acting.user, acting.other, str(uuid4())))
    assert "secret of" not in answer.text
    request_id = problem(answer, 403, "forbidden")["request_id"]
    (event,) = [one for one in acting.events() if one["request_id"] == request_id]
    assert (event["operation"], event["outcome"]) == ("reveal", "forbidden")
    assert (event["user_id"], event["provider"]) == (acting.other, "canvas")
    assert event["on_behalf_of"] == acting.user


def test_a_route_of_all_users_is_refused(acting: Acting) -> None:
    for jwt in (None, KEY.jwt(acting.user)):
        with acting.client(jwt) as client:
            assert "all users" in str(problem(client.get("/v1/encryption"), 403, "forbidden")["detail"])


def test_any_key_that_brings_a_jwt_is_held_to_it(acting: Acting) -> None:
    with acting.client(KEY.jwt(acting.user), key="full") as client:
        assert client.get(token_path(acting.user)).status_code == 200
        problem(client.get(token_path(acting.other)), 403, "forbidden")
        problem(client.get("/v1/encryption"), 403, "forbidden")
    with acting.client("no JWT", key="full") as client:
        problem(client.get(token_path(acting.user)), 403, "forbidden")


def test_a_jwt_adds_no_scope_and_is_no_service_key(acting: Acting) -> None:
    jwt = KEY.jwt(acting.user)
    with acting.client(jwt, key="read") as client:
        assert "tokens:reveal" in str(problem(client.get(token_path(acting.user)), 403, "forbidden")["detail"])
    with acting.client(jwt) as client:
        problem(client.get(token_path(acting.user), headers={"Authorization": f"Bearer {jwt}"}), 401, "unauthenticated")


def test_audit_events_name_the_user_of_the_jwt(acting: Acting) -> None:
    before = len(acting.events())
    with acting.client(KEY.jwt(acting.user)) as client:
        client.get(token_path(acting.user))
        client.get(token_path(acting.other))
        client.post("/v1/tokens/batch-get", json=_batch(acting.user))
    with acting.client() as client:
        client.get(token_path(acting.user))
    with acting.client(key="full") as client:
        client.get(token_path(acting.user))
    events = acting.events()[before:]
    assert [(event["outcome"], event["user_id"], event.get("on_behalf_of")) for event in events] == [
        ("success", acting.user, acting.user),
        ("forbidden", acting.other, acting.user),
        ("success", acting.user, acting.user),
        ("forbidden", acting.user, None),
        ("success", acting.user, None),
    ]


def test_metrics_tell_calls_for_a_user_from_background_calls(acting: Acting) -> None:
    with acting.client(KEY.jwt(acting.user)) as client, acting.client(key="full") as background:
        before = scraped(background)
        client.get(token_path(acting.user))
        client.get(token_path(acting.other))
        client.get(token_path(acting.user), headers={HEADER: KEY.jwt(acting.user, exp=1)})
        background.get(token_path(acting.user))
        seen = scraped(background)
    grown = seen.increase(before, "token_vault_operations_by_kind_total")
    kinds = ("user", "none")
    assert grown == {frozenset({"operation": "reveal", "on_behalf_of": kind}.items()): 1.0 for kind in kinds}
    outcomes = seen.increase(before, "token_vault_user_jwts_total")
    assert {dict(labels)["outcome"]: value for labels, value in outcomes.items()} == {
        "verified": 2.0,
        "other_user": 1.0,
        "expired": 1.0,
    }


def test_keys_rotate_without_a_restart(acting: Acting) -> None:
    first, second = KEY, new_signing_key("RS256")
    try:
        with acting.client(second.jwt(acting.user)) as new, acting.client(first.jwt(acting.user)) as old:
            acting.endpoint.publish(first, second)
            eventually(lambda: new.get(token_path(acting.user)).status_code == 200, within_seconds=120)
            assert old.get(token_path(acting.user)).status_code == 200
            acting.endpoint.publish(second)
            stranger = new_signing_key().jwt(acting.user)  # makes the vault look for a new key
            eventually(
                lambda: (
                    new.get(token_path(acting.user), headers={HEADER: stranger}).status_code == 403
                    and old.get(token_path(acting.user)).status_code in {403, 503}  # 503 until the next download
                ),
                within_seconds=120,
            )
            assert new.get(token_path(acting.user)).status_code == 200
    finally:
        acting.endpoint.publish(first)
        with acting.client(first.jwt(acting.user)) as client:
            eventually(lambda: client.get(token_path(acting.user)).status_code == 200, within_seconds=120)


def test_a_shared_secret_pins_hs256(tmp_path: Path) -> None:
    user, other = str(uuid4()), str(uuid4())
    settings = {"USER_JWT_ISSUER": "https://abcdefgh.supabase.co/auth/v1", "USER_JWT_SECRET": SECRET}
    with running_service(tmp_path, settings) as service, service.client("on_behalf_of") as client:
        client.headers[HEADER] = secret_jwt(user)
        assert client.put(token_path(user), json={"access_token": "x"}).status_code == 201
        assert client.get(token_path(user)).json()["access_token"] == "x"
        problem(client.get(token_path(other)), 403, "forbidden")
        for jwt in (KEY.jwt(user), secret_jwt(user, SECRET[::-1])):
            problem(client.get(token_path(user), headers={HEADER: jwt}), 403, "forbidden")
        assert "user_jwt_keys" not in client.get("/readyz").json()["checks"]
        assert SECRET not in service.log.read_text()


def test_a_vault_without_an_issuer_refuses_such_keys(tmp_path: Path) -> None:
    with running_service(tmp_path, {}) as service, service.client("on_behalf_of") as client:
        for headers in ({}, {HEADER: KEY.jwt(str(uuid4()))}):
            refused = problem(client.get(token_path(str(uuid4())), headers=headers), 403, "forbidden")
            assert "USER_JWT_ISSUER" in str(refused["detail"])
        assert json.loads(service.lines()[-2])["outcome"] == "forbidden"
