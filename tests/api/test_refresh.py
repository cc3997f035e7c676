"""Refreshing over HTTP: a served vault and a provider that it asks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

PAST = "2026-01-01T00:00:00Z"
SCHOOL = {"preset": "canvas", "client_id": "c", "client_secret": "s", "allowed_hosts": ["school.example"]}


@pytest.fixture(scope="module")
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def file(provider: OAuthStandIn, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OAUTH_PROVIDERS_FILE."""
    file = tmp_path_factory.mktemp("providers") / "providers.json"
    _write(file, provider.entry())
    return file


@pytest.fixture(scope="module")
def service(file: Path) -> Iterator[Service]:
    store = SqliteStore(file.parent / "vault.db")
    with running_service(file.parent, {**store.environment(), "OAUTH_PROVIDERS_FILE": str(file)}) as service:
        yield service


@pytest.fixture
def client(service: Service, provider: OAuthStandIn) -> Iterator[httpx.Client]:
    provider.always(None)
    with service.client() as client:
        yield client


def test_an_expired_token_is_revealed_fresh(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, stored = _stored(client, provider)
    assert (stored["refreshable"], stored["refresh_retry_at"]) == (True, None)
    revealed = client.get(path).json()
    assert revealed["access_token"] != "first"
    assert (revealed["min_ttl_met"], revealed["version"]) == (True, stored["version"] + 1)
    assert revealed["id"] == stored["id"]
    assert "refresh_token" not in revealed
    assert client.get(path).json() == revealed


def test_min_ttl_is_a_number_of_seconds(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, _ = _stored(client, provider)
    assert client.get(path, params={"min_ttl": "0"}).json()["min_ttl_met"] is False
    for wrong in ("-1", "1.5", "x", "", "86401", "9" * 40, "\uff11"):
        problem(client.get(path, params={"min_ttl": wrong}), 422, "invalid_request")
    assert client.get(path, params={"min_ttl": "60"}).json()["min_ttl_met"] is True


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [
        (Answer(status=503), 503, "provider_unavailable"),
        (Answer(status=400, body={"error": "invalid_grant"}), 409, "token_inactive"),
    ],
)
def test_a_failed_refresh_of_an_expired_token_is_a_problem(
    client: httpx.Client, provider: OAuthStandIn, answer: Answer, status: int, code: str
) -> None:
    provider.always(answer)
    path, _ = _stored(client, provider)
    answered = client.get(path)
    problem(answered, status, code)
    assert ("retry-after" in answered.headers) is (status == 503)
    assert client.get(path, params={"min_ttl": 0}).status_code == (409 if status == 409 else 200)


def test_one_refresh_answers_a_storm_of_rejections(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, _ = _stored(client, provider, expires_in=3_600)
    version = client.get(path).json()["version"]
    before = provider.refreshes

    def rejected(_: int) -> str:
        answer = client.post(f"{path}/refresh", json={"rejected_version": version})
        assert answer.status_code == 200, answer.text
        token: str = answer.json()["access_token"]
        return token

    with ThreadPoolExecutor(12) as threads:
        assert len(set(threads.map(rejected, range(24)))) == 1
    assert provider.refreshes == before + 1


def test_a_token_without_a_provider_cannot_be_refreshed(client: httpx.Client) -> None:
    path = f"/v1/users/{uuid4()}/tokens/canvas"
    stored = client.put(path, json={"access_token": "manual", "refresh_token": "r", "expires_at": PAST}).json()
    assert stored["refreshable"] is False
    revealed = client.get(path).json()
    assert (revealed["access_token"], revealed["min_ttl_met"], revealed["refreshable"]) == ("manual", False, False)
    body = {"rejected_version": stored["version"]}
    problem(client.post(f"{path}/refresh", json=body), 422, "invalid_request")


def test_a_batch_refreshes_what_is_due(client: httpx.Client, provider: OAuthStandIn) -> None:
    paths = [_stored(client, provider)[0] for _ in range(3)]
    ids = [{"user_id": path.split("/")[3], "provider": "acme"} for path in paths]
    results = client.post("/v1/tokens/batch-get", json={"tokens": ids, "min_ttl": 60}).json()["results"]
    assert all(result["token"]["access_token"] != "first" for result in results)
    provider.always(Answer(status=503))
    paths = [_stored(client, provider)[0] for _ in range(2)]
    ids = [{"user_id": path.split("/")[3], "provider": "acme"} for path in paths]
    problem(client.post("/v1/tokens/batch-get", json={"tokens": ids}), 503, "provider_unavailable")


def test_a_code_is_exchanged_and_its_tokens_stay_in_the_vault(client: httpx.Client, provider: OAuthStandIn) -> None:
    path = f"/v1/users/{uuid4()}/tokens/acme"
    body = {"code": provider.seed_code(), "redirect_uri": "https://api.example/cb", "code_verifier": "v" * 43}
    created = client.post(f"{path}/exchange", json=body)
    assert created.status_code == 201, created.text
    assert {"access_token", "refresh_token"}.isdisjoint(created.json())
    assert (created.json()["has_refresh_token"], created.json()["refreshable"]) == (True, True)
    sent = provider.requests[-1].parameters
    assert (sent["grant_type"], sent["code_verifier"]) == ("authorization_code", "v" * 43)
    assert client.get(path).json()["version"] == created.json()["version"]
    problem(client.post(f"{path}/exchange", json=body), 409, "token_inactive")  # a code is redeemed once
    again = client.post(f"{path}/exchange", json={**body, "code": provider.seed_code()})
    assert (again.status_code, again.json()["id"]) == (200, created.json()["id"])


def test_an_exchange_without_a_refresh_token_says_so(client: httpx.Client, provider: OAuthStandIn) -> None:
    """The stored one may be of another account at the provider, so it is not kept."""
    path, stored = _stored(client, provider)
    assert (stored["has_refresh_token"], stored["refreshable"]) == (True, True)
    provider.script(Answer(commits=True, changes={"refresh_token": None}))
    body = {"code": provider.seed_code(), "redirect_uri": "https://api.example/cb"}
    again = client.post(f"{path}/exchange", json=body)
    assert again.status_code == 200
    assert (again.json()["has_refresh_token"], again.json()["refreshable"]) == (False, False)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"code": "c"},
        {"code": "", "redirect_uri": "https://api.example/cb"},
        {"code": "c", "redirect_uri": "https://api.example/cb", "code_verifier": "short"},
        {"code": "c", "redirect_uri": "https://api.example/cb", "base_url": "http://canvas.example.edu"},
    ],
)
def test_an_invalid_exchange_asks_no_provider(
    client: httpx.Client, provider: OAuthStandIn, body: dict[str, Any]
) -> None:
    asked = len(provider.requests)
    problem(client.post(f"/v1/users/{uuid4()}/tokens/acme/exchange", json=body), 422, "invalid_request")
    assert len(provider.requests) == asked


def test_an_exchange_needs_a_configured_provider(client: httpx.Client) -> None:
    body = {"code": "c", "redirect_uri": "https://api.example/cb"}
    answer = client.post(f"/v1/users/{uuid4()}/tokens/canvas/exchange", json=body)
    problem(answer, 422, "invalid_request")


@pytest.mark.parametrize("place", [{}, {"base_url": "https://other.example"}])
def test_an_exchange_at_canvas_needs_an_allowed_base_url(client: httpx.Client, place: dict[str, str]) -> None:
    body = {"code": "c", "redirect_uri": "https://api.example/cb", **place}
    answer = client.post(f"/v1/users/{uuid4()}/tokens/school/exchange", json=body)
    problem(answer, 422, "invalid_request")
    assert [one["field"] for one in answer.json()["errors"]] == ["base_url"]


def test_a_corrected_client_secret_is_used_without_a_restart(
    client: httpx.Client, provider: OAuthStandIn, file: Path
) -> None:
    path, _ = _stored(client, provider)
    _write(file, provider.entry(client_secret="wrong-secret-0000"))
    other, _ = _stored(client, provider)
    eventually(lambda: _refused(client, provider, other))
    problem(client.get(path), 500, "provider_misconfigured")
    assert client.get(path, params={"min_ttl": 0}).json()["status"] == "ok"
    _write(file, provider.entry())
    eventually(lambda: client.get(path).status_code == 200)


def _stored(client: httpx.Client, provider: OAuthStandIn, **expiry: Any) -> tuple[str, dict[str, Any]]:
    """Store a token that has expired, unless `expiry` says otherwise; return its path and the answer."""
    path = f"/v1/users/{uuid4()}/tokens/acme"
    body = {"access_token": "first", "refresh_token": provider.seed(), **(expiry or {"expires_at": PAST})}
    answer = client.put(path, json=body)
    assert answer.status_code == 201, answer.text
    stored: dict[str, Any] = answer.json()
    return path, stored


def _refused(client: httpx.Client, provider: OAuthStandIn, path: str) -> bool:
    """Whether an expired token is refused; until the registry is read again, the old secret refreshes it."""
    body = {"access_token": "first", "refresh_token": provider.seed(), "expires_at": PAST}
    assert client.put(path, json=body).status_code == 200
    return client.get(path).status_code == 500


def _write(file: Path, entry: dict[str, Any]) -> None:
    draft = file.with_suffix(".draft")
    draft.write_text(json.dumps({"acme": entry, "school": SCHOOL}))
    draft.chmod(0o600)
    draft.replace(file)


def test_a_deletion_without_revoke_asks_no_provider(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, _ = _stored(client, provider)
    asked = len(provider.requests)
    answer = client.delete(path)
    assert (answer.status_code, answer.content, len(provider.requests)) == (204, b"", asked)


def test_a_revoked_token_is_answered_with_a_receipt(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, stored = _stored(client, provider)
    problem(client.delete(path, params={"revoke": "true"}, headers={"If-Match": '"1"'}), 412, "version_conflict")
    answer = client.delete(path, params={"revoke": "true"}, headers={"If-Match": f'"{stored["version"]}"'})
    assert answer.status_code == 200, answer.text
    assert answer.json() == {"access_token": "revoked", "refresh_token": "revoked", "deleted": True}
    assert provider.revoked[-1] == "first"
    problem(client.delete(path, params={"revoke": "true"}), 404, "token_not_found")


def test_a_required_revocation_that_fails_keeps_the_token(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, _ = _stored(client, provider, expires_in=3_600)
    provider.always(Answer(status=500))
    refused = problem(client.delete(path, params={"revoke": "required"}), 503, "provider_unavailable")
    assert refused["receipt"] == {"access_token": "failed", "refresh_token": "unknown", "deleted": False}
    provider.always(Answer(status=400, body={"error": "invalid_request"}))
    refused = problem(client.delete(path, params={"revoke": "required"}), 500, "provider_misconfigured")
    assert refused["receipt"] == {"access_token": "failed", "refresh_token": "failed", "deleted": False}
    assert client.get(path).json()["access_token"] == "first"
    receipt = client.delete(path, params={"revoke": "true"}).json()
    assert receipt == {"access_token": "failed", "refresh_token": "failed", "deleted": True}


def test_without_a_provider_revoke_deletes_and_required_does_not(client: httpx.Client) -> None:
    path = f"/v1/users/{uuid4()}/tokens/canvas"
    client.put(path, json={"access_token": "manual"})
    refused = problem(client.delete(path, params={"revoke": "required"}), 422, "invalid_request")
    assert refused["receipt"] == {"access_token": "unsupported", "refresh_token": None, "deleted": False}
    for wrong in ("false", "", "1", "True"):
        problem(client.delete(path, params={"revoke": wrong}), 422, "invalid_request")
    receipt = client.delete(path, params={"revoke": "true"}).json()
    assert receipt == {"access_token": "unsupported", "refresh_token": None, "deleted": True}


def test_an_erasure_answers_with_a_receipt_for_each_token(client: httpx.Client, provider: OAuthStandIn) -> None:
    path, _ = _stored(client, provider)
    user = path.rpartition("/")[0]
    client.put(f"{user}/canvas", json={"access_token": "manual"})
    for wrong in ({"revok": "true"}, {"service_type": "calendar"}, {"revoke": "maybe"}):
        problem(client.delete(user, params=wrong), 422, "invalid_request")
    kept = problem(client.delete(user, params={"revoke": "required"}), 422, "invalid_request")
    assert kept["deleted"] == 1
    assert kept["receipts"] == [
        {"provider": "acme", "service_type": "default"}
        | dict.fromkeys(("access_token", "refresh_token"), "revoked")
        | {"deleted": True},
        {"provider": "canvas", "service_type": "default", "access_token": "unsupported", "refresh_token": None}
        | {"deleted": False},
    ]
    assert isinstance(kept["kept"], list)
    assert [(one["provider"], one["problem"]["code"]) for one in kept["kept"]] == [("canvas", "invalid_request")]
    erased = client.delete(user, params={"revoke": "true"}).json()
    assert erased["deleted"] == len(erased["receipts"]) == 1
    assert client.delete(user, params={"revoke": "true"}).json() == {"deleted": 0, "receipts": []}


def test_an_outage_of_a_provider_leaves_the_replica_ready(client: httpx.Client, provider: OAuthStandIn) -> None:
    """It concerns every replica, and each still answers the tokens that are valid."""
    eventually(lambda: _providers(client) == "up")
    valid = _stored(client, provider, expires_in=3_600)[0]
    provider.always(Answer(status=503))
    for _ in range(3):
        problem(client.get(_stored(client, provider)[0]), 503, "provider_unavailable")
    eventually(lambda: _providers(client) == "degraded")
    assert client.get(valid).status_code == 200
    provider.always(None)
    assert client.get(_stored(client, provider)[0]).status_code == 200
    eventually(lambda: _providers(client) == "up")


def test_an_invalid_list_of_providers_is_degraded(client: httpx.Client, provider: OAuthStandIn, file: Path) -> None:
    file.write_text("{")
    eventually(lambda: _providers(client) == "degraded")
    _write(file, provider.entry())
    eventually(lambda: _providers(client) == "up")


def _providers(client: httpx.Client) -> str:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    state: str = answer.json()["checks"]["providers"]
    return state
