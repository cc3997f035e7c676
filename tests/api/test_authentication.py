"""Authentication and authorisation of each route."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from app.callers.service_keys import Scope, generate_key
from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import Store
from tests.support.waiting import eventually

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
TOKENS = f"/v1/users/{USER}/tokens"
CANVAS = f"{TOKENS}/canvas"
BODY = {"access_token": "x"}

ROUTES: dict[str, tuple[Scope, Callable[[httpx.Client, str], httpx.Response]]] = {
    "store": (Scope.WRITE, lambda client, provider: client.put(f"{TOKENS}/{provider}", json=BODY)),
    "reveal": (Scope.REVEAL, lambda client, provider: client.get(f"{TOKENS}/{provider}")),
    "patch": (Scope.WRITE, lambda client, provider: client.patch(f"{TOKENS}/{provider}", json={"status": "ok"})),
    "rotate": (Scope.WRITE, lambda client, provider: client.post(f"{TOKENS}/{provider}/rotate", json=BODY)),
    "delete": (Scope.DELETE, lambda client, provider: client.delete(f"{TOKENS}/{provider}")),
    "list": (Scope.READ, lambda client, _: client.get(TOKENS)),
    "erase": (Scope.DELETE, lambda client, _: client.delete(TOKENS)),
    "batch": (
        Scope.REVEAL,
        lambda client, provider: client.post(
            "/v1/tokens/batch-get", json={"tokens": [{"user_id": USER, "provider": provider}]}
        ),
    ),
}
every_route = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture
def service(sqlite_service: tuple[Service, Store]) -> Service:
    """One store is enough, because authorisation does not depend on it."""
    service, store = sqlite_service
    with service.client() as client:
        client.delete(TOKENS)
        client.put(CANVAS, json=BODY)
        client.put(f"{TOKENS}/google", json=BODY)
    assert len(store.rows()) >= 2
    return service


def _headers(service: Service) -> dict[str, dict[str, str] | list[tuple[str, str]]]:
    full = service.keys["full"]
    return {
        "no key": {},
        "another scheme": {"Authorization": f"Basic {full}"},
        "no scheme": {"Authorization": full},
        "an empty key": {"Authorization": "Bearer"},
        "another prefix": {"Authorization": f"Bearer {full.replace('ptv_', 'xyz_')}"},
        "a short key": {"Authorization": f"Bearer {full[:-1]}"},
        "a long key": {"Authorization": f"Bearer {full}x"},
        "two keys": {"Authorization": f"Bearer {full} {full}"},
        "an unknown key": {"Authorization": f"Bearer {generate_key()}"},
        "a key with its last character changed": {
            "Authorization": f"Bearer {full[:-2]}{'AB' if full[-2:] != 'AB' else 'CD'}"
        },
        "an expired key": {"Authorization": f"Bearer {service.keys['expired']}"},
        "another header": {"X-Api-Key": full},
        "the key twice": [("Authorization", f"Bearer {full}"), ("Authorization", f"Bearer {full}")],
    }


@pytest.mark.parametrize("case", range(13))
def test_a_request_without_a_live_key_is_unauthenticated(service: Service, case: int) -> None:
    name, headers = list(_headers(service).items())[case]
    with (
        service.logged() as lines,
        httpx.Client(base_url=service.url, headers=headers, timeout=60, trust_env=False, verify=PLAIN_HTTP) as client,
    ):
        responses = [call(client, "canvas") for _, call in ROUTES.values()]
    for response in responses:
        problem(response, 401, "unauthenticated")
        assert response.headers["www-authenticate"].startswith("Bearer"), name
    assert [line["outcome"] for line in lines] == ["unauthenticated"] * len(ROUTES)
    text = json.dumps(lines) + "".join(response.text for response in responses)
    assert [key for key in service.keys.values() if key in text] == []


@every_route
@pytest.mark.parametrize("scope", Scope)
def test_each_route_needs_exactly_its_scope(service: Service, route: str, scope: Scope) -> None:
    needed, call = ROUTES[route]
    with service.client(scope.name.lower()) as client:
        response = call(client, "canvas")
    if scope is needed:
        assert response.is_success, response.text
    else:
        assert needed.value in str(problem(response, 403, "forbidden")["detail"])


def test_the_refresh_token_needs_another_scope(service: Service) -> None:
    with service.client("reveal") as client:
        problem(client.get(CANVAS, params={"include": "refresh_token"}), 403, "forbidden")
        batch = {"tokens": [{"user_id": USER, "provider": "canvas"}], "include": "refresh_token"}
        problem(client.post("/v1/tokens/batch-get", json=batch), 403, "forbidden")
    with service.client("reveal_refresh") as client:
        problem(client.get(CANVAS, params={"include": "refresh_token"}), 403, "forbidden")


@pytest.mark.parametrize("route", ["store", "reveal", "patch", "rotate", "delete"])
def test_a_key_limited_to_a_provider_reaches_no_other(service: Service, route: str) -> None:
    with service.client("canvas") as client:
        problem(ROUTES[route][1](client, "google"), 403, "forbidden")
        problem(ROUTES[route][1](client, "GOOGLE"), 403, "forbidden")
        assert ROUTES[route][1](client, "canvas").is_success


def test_a_key_limited_to_a_provider_lists_only_that_and_erases_no_user(service: Service) -> None:
    with service.client("canvas") as client:
        assert [one["provider"] for one in client.get(TOKENS).json()["tokens"]] == ["canvas"]
        problem(client.delete(TOKENS), 403, "forbidden")


def test_a_caller_without_a_key_learns_nothing_from_a_broken_body(service: Service) -> None:
    with httpx.Client(base_url=service.url, trust_env=False, verify=PLAIN_HTTP) as client:
        problem(client.put("/v1/users/x/tokens/Y", content=b"\xff"), 401, "unauthenticated")
        problem(client.put(CANVAS, content=b" " * 100_000), 401, "unauthenticated")
    with service.client("read") as client:
        problem(client.put(CANVAS, content=b"\xff"), 403, "forbidden")


def test_health_needs_no_key_and_reveals_nothing(service: Service) -> None:
    with httpx.Client(base_url=service.url, trust_env=False, verify=PLAIN_HTTP) as client:
        assert client.get("/healthz").json() == {"status": "ok"}
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["checks"] == {"store": "up", "encryption": "up", "service_keys": "up"}


def test_a_valid_request_id_is_kept_and_any_other_replaced(service: Service) -> None:
    with service.client() as client:
        assert client.get(CANVAS, headers={"X-Request-ID": "job-42.a_b"}).headers["x-request-id"] == "job-42.a_b"
        for invalid in ("", "a b", "x" * 65, "<script>", "-x", '"'):
            replaced = client.get(CANVAS, headers={"X-Request-ID": invalid}).headers["x-request-id"]
            assert replaced != invalid
            assert len(replaced) == 32
        problem(client.get(f"{TOKENS}/notion", headers={"X-Request-ID": "job-43"}), 404, "token_not_found")


@every_route
def test_no_response_of_the_api_may_be_cached(service: Service, route: str) -> None:
    with service.client() as client:
        assert ROUTES[route][1](client, "canvas").headers["cache-control"] == "no-store"
    with httpx.Client(base_url=service.url, trust_env=False, verify=PLAIN_HTTP) as client:
        assert ROUTES[route][1](client, "canvas").headers["cache-control"] == "no-store"


def test_a_revoked_key_stops_and_a_new_one_works_without_a_restart(service: Service) -> None:
    file = service.log.with_name("service-keys.json")
    whole = file.read_text()
    without = [entry for entry in json.loads(whole) if entry["service"] != "reveal"]
    with service.client("reveal") as revoked, service.client() as client:
        assert revoked.get(CANVAS).status_code == 200
        try:
            file.write_text(json.dumps(without))
            _answers(revoked, CANVAS, 401)
            _answers(client, CANVAS, 200)
            file.write_text('[{"service": "')  # invalid, so none of its keys is accepted
            _answers(client, CANVAS, 401)
            _answers(client, "/readyz", 503)
            file.unlink()
            _answers(client, CANVAS, 401)
        finally:
            file.write_text(whole)
        _answers(revoked, CANVAS, 200)
        _answers(client, "/readyz", 200)


def _answers(client: httpx.Client, path: str, status: int) -> None:
    eventually(lambda: client.get(path).status_code == status)
