"""Calls to a provider with a vaulted token: `VaultAuth`, and the example of PulsePlan's API."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import httpx
import pytest
from token_vault_client import (
    AsyncVaultAuth,
    AsyncVaultClient,
    Forbidden,
    TokenCache,
    VaultAuth,
    VaultClient,
    WrongHostError,
)

from tests.support.api.service import Service, running_service
from tests.support.api.vault_clients import vault_client
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.paths import ROOT
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore

EXAMPLE = ROOT / "examples" / "pulseplan_api" / "main.py"
REJECTS = Answer(status=401, body={})
SERVES = Answer(body={"items": [{"summary": "Lectures"}]})
REFRESHES = Answer(commits=True)


@pytest.fixture(scope="module")
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.fixture(scope="module")
def service(provider: OAuthStandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("provider-calls")
    providers = folder / "providers.json"
    providers.write_text(httpx.Response(200, json={"google": provider.entry()}).text)
    providers.chmod(0o600)
    settings = {**SqliteStore(folder / "vault.db").environment(), "OAUTH_PROVIDERS_FILE": str(providers)}
    with running_service(folder, settings) as service:
        yield service


@pytest.fixture
def vault(service: Service) -> Iterator[VaultClient]:
    with vault_client("sync", service, cache=TokenCache()) as client:
        yield client


@pytest.fixture
def user(vault: VaultClient, provider: OAuthStandIn) -> str:
    """A user whose Google token lives for an hour and can be refreshed."""
    user = str(uuid4())
    vault.store(user, "google", access_token="first", refresh_token=provider.seed(), expires_in=3600)
    provider.requests.clear()
    return user


def _called_with(provider: OAuthStandIn) -> list[str | None]:
    return [one.headers.get("authorization") for one in provider.requests if one.path == "/api"]


def test_a_401_of_the_provider_refreshes_and_repeats_the_call(
    vault: VaultClient, user: str, provider: OAuthStandIn
) -> None:
    provider.script(REJECTS, REFRESHES, SERVES, SERVES)
    with httpx.Client(auth=VaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google:
        answer = google.post(f"{provider.origin}/api", content=iter([b'{"a":', b"1}"]))
        assert answer.json() == SERVES.body
        assert google.get(f"{provider.origin}/api").status_code == 200
    first, second, third = _called_with(provider)
    assert first == "Bearer first"
    assert second == third != first, "the cache has the new one"
    bodies = [one.parameters for one in provider.requests if one.path == "/api"]
    assert bodies[0] == bodies[1], "the body is sent again"


async def test_the_asynchronous_authentication_does_the_same(
    service: Service, user: str, provider: OAuthStandIn
) -> None:
    provider.script(REJECTS, REFRESHES, SERVES)
    async with (
        AsyncVaultClient(service.url, service.keys["full"]) as vault,
        httpx.AsyncClient(auth=AsyncVaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google,
    ):
        assert (await google.get(f"{provider.origin}/api")).json() == SERVES.body
    assert len(set(_called_with(provider))) == 2


async def test_many_rejected_calls_cause_one_refresh(service: Service, user: str, provider: OAuthStandIn) -> None:
    before = provider.refreshes  # /api rejects every call that has no scripted answer
    async with (
        AsyncVaultClient(service.url, service.keys["full"]) as vault,
        httpx.AsyncClient(auth=AsyncVaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google,
    ):
        answers = await asyncio.gather(*(google.get(f"{provider.origin}/api") for _ in range(8)))
    assert {one.status_code for one in answers} == {401}
    assert provider.refreshes == before + 1


def test_an_endpoint_that_always_rejects_causes_one_refresh(
    vault: VaultClient, user: str, provider: OAuthStandIn
) -> None:
    before = provider.refreshes
    with httpx.Client(auth=VaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google:
        assert [google.get(f"{provider.origin}/api").status_code for _ in range(3)] == [401, 401, 401]
    assert provider.refreshes == before + 1


def test_a_second_401_is_the_answer(vault: VaultClient, user: str, provider: OAuthStandIn) -> None:
    provider.script(REJECTS, REFRESHES, REJECTS)
    with httpx.Client(auth=VaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google:
        assert google.get(f"{provider.origin}/api").status_code == 401
    vault.store(user, "notion", access_token="not refreshable")
    provider.script(REJECTS)
    with httpx.Client(auth=VaultAuth(vault, user, "notion"), verify=PLAIN_HTTP) as notion:
        assert notion.get(f"{provider.origin}/api").status_code == 401


def test_a_token_that_was_replaced_elsewhere_is_used_after_a_401(
    service: Service, vault: VaultClient, user: str, provider: OAuthStandIn
) -> None:
    vault.store(user, "notion", access_token="old")
    vault.reveal(user, "notion")  # so that the cache has it
    with vault_client("sync", service) as other:
        other.store(user, "notion", access_token="new")
    provider.requests.clear()
    provider.script(REJECTS, SERVES, SERVES)
    with httpx.Client(auth=VaultAuth(vault, user, "notion"), verify=PLAIN_HTTP) as notion:
        assert notion.get(f"{provider.origin}/api").status_code == 200
        assert notion.get(f"{provider.origin}/api").status_code == 200
    assert _called_with(provider) == ["Bearer old", "Bearer new", "Bearer new"]


def test_a_key_without_the_scope_raises_instead_of_refreshing(
    service: Service, user: str, provider: OAuthStandIn
) -> None:
    provider.script(REJECTS)
    with (
        vault_client("sync", service, "reveal") as vault,
        httpx.Client(auth=VaultAuth(vault, user, "google"), verify=PLAIN_HTTP) as google,
        pytest.raises(Forbidden),
    ):
        google.get(f"{provider.origin}/api")


def test_a_token_goes_to_its_own_host_only(vault: VaultClient, user: str) -> None:
    vault.store(user, "canvas", access_token="1234~x", base_url="https://canvas.example.edu/")
    sent: list[httpx.URL] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url)
        return httpx.Response(200)

    auth = VaultAuth(vault, user, "canvas")
    with httpx.Client(auth=auth, transport=httpx.MockTransport(answer)) as canvas:
        assert canvas.get("https://canvas.example.edu/api/v1/courses").status_code == 200
        for url in (
            "https://canvas.example.com/api/v1/courses",
            "https://canvas.example.edu:8443/api/v1/courses",
            "https://canvas.example.edu.attacker.test/",
            "http://canvas.example.edu/api/v1/courses",
            "http://127.0.0.1/api/v1/courses",
        ):
            with pytest.raises(WrongHostError):
                canvas.get(url)
    assert len(sent) == 1
    everywhere = httpx.Client(auth=VaultAuth(vault, user, "google"), transport=httpx.MockTransport(answer))
    with everywhere as google, pytest.raises(WrongHostError):
        google.get("http://www.googleapis.com/")


@pytest.fixture
async def example(
    service: Service, provider: OAuthStandIn, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of the example, which runs in this process."""
    for name, value in {
        "VAULT_URL": service.url,
        "VAULT_KEY": service.keys["full"],
        "GOOGLE_CLIENT_ID": "the-client",
        "GOOGLE_CALENDARS_URL": f"{provider.origin}/api",
    }.items():
        monkeypatch.setenv(name, value)
    app = _module(EXAMPLE).app
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="https://api.pulseplan.test") as browser,
    ):
        yield browser


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("pulseplan_api_example", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_example_connects_reads_and_disconnects(
    example: httpx.AsyncClient, vault: VaultClient, provider: OAuthStandIn
) -> None:
    user = str(uuid4())
    signed_in = (user, "any password")
    assert (await example.get("/connect/google")).headers["www-authenticate"] == "Basic", "a browser asks its user"
    assert (await example.get("/calendars", auth=signed_in)).json() == {"error": "connect_google"}

    consent = urlsplit((await example.get("/connect/google", auth=signed_in)).headers["location"])
    state = parse_qs(consent.query)["state"][0]
    back = {"code": provider.seed_code(), "state": state}
    example.cookies.clear()
    elsewhere = await example.get("/connect/google/callback", params=back)
    assert elsewhere.status_code == 400, "the browser of somebody else, who was sent the link"
    stranger = await example.get("/connect/google/callback", params={**back, "state": "\u00e9"})
    assert stranger.status_code == 400, "a state that is no text of ours"
    example.cookies.set("connect_state", state)
    assert (await example.get("/connect/google/callback", params=back)).json() == {"connected": "google", "scopes": []}
    assert (await example.get("/connect/google/callback", params=back)).status_code == 400, "a state serves once"

    provider.script(REJECTS, REFRESHES, SERVES)
    assert (await example.get("/calendars", auth=signed_in)).json() == ["Lectures"]
    assert (await example.delete("/connect/google", auth=signed_in)).json() == {"revoked": "revoked"}
    assert vault.list_for_user(user).tokens == ()
