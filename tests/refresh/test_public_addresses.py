"""The client contacts nothing but the public hosts of its entry."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from app.errors import GrantRejected, ProviderMisconfigured, ProviderUnavailable, RevocationUnsupported, VaultError
from app.refresh.endpoints import EndpointError, parse_endpoint, parse_host, token_endpoint
from app.refresh.provider_client import ProviderClient
from app.refresh.public_addresses import HostResolver, is_public
from tests.support.oauth.providers import provider_client, provider_of
from tests.support.oauth.resolver import ScriptedResolver
from tests.support.oauth.stand_in import CLIENT_ID, CLIENT_SECRET, Answer, OAuthStandIn, oauth_stand_in
from tests.support.process.certificates import tls_contexts
from tests.support.waiting import eventually_async

PRIVATE = [
    *["127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "100.64.0.1"],  # noqa: S104
    *["169.254.169.254", "169.254.170.2", "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"],
    *["::1", "::", "fe80::1", "fe80::1%eth0", "fd00:ec2::254", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1"],
    *["::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "2002:7f00:1::", "::7f00:1"],
    *["2001:0:7f00:1::", "not an address", ""],
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "142.250.1.95", "2607:f8b0:4004::5f", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]
)
def test_a_public_address_is_permitted(address: str) -> None:
    assert is_public(address)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return tls_contexts(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def stand_in(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[OAuthStandIn]:
    """A provider on the loopback address, which answers whatever reaches it."""
    with oauth_stand_in(tls=tls[1]) as running:
        yield running


def _entry(url: str, **changes: Any) -> dict[str, Any]:
    return {
        "token_url": url,
        "client_auth": "post",
        "client_id": "c",
        "client_secret": "s",
        "rotation": "none",
    } | changes


CANVAS = {"preset": "canvas", "client_id": "c", "client_secret": "s", "allowed_hosts": ["school.example"]}


async def _refresh(client: ProviderClient, entry: dict[str, Any], base_url: str | None = None) -> None:
    await client.refresh(provider_of(entry), refresh_token=SecretStr("r"), base_url=base_url, scopes=())


@asynccontextmanager
async def _client(tls: ssl.SSLContext, resolver: AbstractResolver) -> AsyncIterator[ProviderClient]:
    async with provider_client(tls=tls, resolver=resolver, connect_seconds=1) as client:
        yield client


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1"])
async def test_a_name_of_a_private_address_is_not_contacted(
    stand_in: OAuthStandIn, tls: tuple[ssl.SSLContext, ssl.SSLContext], address: str
) -> None:
    before = stand_in.connections
    async with _client(tls[0], ScriptedResolver([address])) as client:
        with pytest.raises(ProviderMisconfigured, match="not public"):
            await _refresh(client, _entry(f"https://provider.example:{stand_in.port}/token"))
    assert stand_in.connections == before


async def test_a_name_that_changes_its_address_is_not_contacted(
    stand_in: OAuthStandIn, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    before = stand_in.connections
    resolver = ScriptedResolver(["8.8.8.8"], ["127.0.0.1"])
    [checked] = await resolver.resolve("rebinding.example")
    assert is_public(checked["host"]), "a check before the connection finds nothing"
    async with _client(tls[0], resolver) as client:
        with pytest.raises(ProviderMisconfigured, match="not public"):
            await _refresh(client, _entry(f"https://rebinding.example:{stand_in.port}/token"))
    assert stand_in.connections == before


async def test_an_insecure_entry_reaches_a_private_address(
    stand_in: OAuthStandIn, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    entry = stand_in.entry()
    async with _client(tls[0], HostResolver()) as client:
        await client.refresh(provider_of(entry), refresh_token=SecretStr(stand_in.seed()), base_url=None, scopes=())
        before = stand_in.connections
        with pytest.raises(VaultError):  # the same client, and an entry without the permission
            await _refresh(client, _entry(f"https://localhost:{stand_in.port}/token"))
    assert stand_in.connections == before


async def test_a_certificate_of_a_stranger_is_refused(stand_in: OAuthStandIn, tmp_path: Path) -> None:
    other, _ = tls_contexts(tmp_path)
    received = len(stand_in.requests)
    async with _client(other, HostResolver()) as client:
        with pytest.raises(ProviderUnavailable, match="TLS") as caught:
            await client.refresh(provider_of(stand_in.entry()), refresh_token=SecretStr("r"), base_url=None, scopes=())
    assert not caught.value.sent
    assert len(stand_in.requests) == received


async def test_proxies_of_the_environment_are_not_used(
    stand_in: OAuthStandIn, tls: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    with oauth_stand_in() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy.origin)
        async with _client(tls[0], HostResolver()) as client:
            refresh_token = SecretStr(stand_in.seed())
            await client.refresh(provider_of(stand_in.entry()), refresh_token=refresh_token, base_url=None, scopes=())
        assert proxy.connections == 0


BASE_URLS = [
    None,
    "https://other.example",
    "https://school.example.evil.example",
    "https://evil.school.example",
    "http://school.example",
    "https://school.example:8443",
    "https://user@school.example",
    "https://school.example@evil.example",
    "https://school.example:x@evil.example/",
    "https://evil.example/https://school.example",
    "https://evil.example#school.example",
    "https://evil.example\\@school.example",
    "https://school。example",
    "https://ѕchool.example",  # noqa: RUF001  a Cyrillic letter
    "https://xn--chool-j7a.example",
    "https://school.example.",
    "https://169.254.169.254",
    "https://[::1]",
    "//school.example",
    "school.example",
    "",
]


@pytest.mark.parametrize("base_url", BASE_URLS)
async def test_a_base_url_that_is_not_allowed_contacts_nothing(
    tls: tuple[ssl.SSLContext, ssl.SSLContext], base_url: str | None
) -> None:
    resolver = ScriptedResolver(["127.0.0.1"])
    async with _client(tls[0], resolver) as client:
        with pytest.raises(ProviderMisconfigured):
            await _refresh(client, CANVAS, base_url)
    assert resolver.questions == 0


@pytest.mark.parametrize(
    "base_url", ["https://school.example", "https://School.example/api/v1", "https://school.example:443"]
)
def test_an_allowed_base_url_gives_the_endpoint_of_its_host(base_url: str) -> None:
    assert token_endpoint(provider_of(CANVAS), base_url) == "https://school.example/login/oauth2/token"


async def test_names_of_one_provider_that_hang_delay_no_other(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """A lookup cannot be cancelled, so each Canvas host whose name server hangs keeps a thread."""
    over, asked = threading.Event(), list[str]()

    def get_addresses(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        asked.append(host)
        if host.startswith("school"):
            over.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    schools = [f"school{number}.example" for number in range(20)]
    canvas = CANVAS | {"allowed_hosts": schools}
    with oauth_stand_in() as stand_in:
        url = stand_in.token_url.replace("127.0.0.1", "good.example")
        good = provider_of(stand_in.entry(token_url=url), "good")
        client = ProviderClient(tls=tls[0], new_resolver=lambda: HostResolver(get_addresses=get_addresses))
        refreshes = [asyncio.create_task(_refresh(client, canvas, f"https://{school}")) for school in schools]
        try:
            await eventually_async(lambda: len(asked) > 7)
            token = SecretStr(stand_in.seed())
            await client.refresh(good, refresh_token=token, base_url=None, scopes=())
        finally:
            over.set()
            await asyncio.gather(*refreshes, return_exceptions=True)
            await client.close()
    assert asked.count("good.example") == 1


async def test_canvas_is_asked_at_the_tokens_host_and_revokes_there(
    stand_in: OAuthStandIn, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    place = f"127.0.0.1:{stand_in.port}"
    client_of = {"client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
    canvas = provider_of(CANVAS | client_of | {"allowed_hosts": [place], "allow_insecure": True})
    async with _client(tls[0], HostResolver()) as client:
        token, base_url = SecretStr(stand_in.seed()), f"https://{place}/courses"
        await client.refresh(canvas, refresh_token=token, base_url=base_url, scopes=())
        stand_in.script(Answer(), Answer(status=401))
        await client.revoke(canvas, token=SecretStr("an-access-token"), hint="access_token", base_url=base_url)
        with pytest.raises(GrantRejected):  # expired: the refresh token of the grant still works
            await client.revoke(canvas, token=SecretStr("expired"), hint="access_token", base_url=base_url)
        with pytest.raises(RevocationUnsupported):
            await client.revoke(canvas, token=token, hint="refresh_token", base_url=base_url)
    refreshed, revoked, _ = stand_in.requests[-3:]
    assert (refreshed.method, revoked.method) == ("POST", "DELETE")
    assert {refreshed.path, revoked.path} == {"/login/oauth2/token"}
    assert revoked.headers["authorization"] == "Bearer an-access-token"


@pytest.mark.parametrize(
    "url",
    [
        *["http://a.example/t", "https://u:p@a.example/t", "https://a.example/t?q=1", "https://a.example/t#f"],
        *["https://127.0.0.1/t", "https://[::1]/t", "https://2130706433/t", "https://127.1/t", "https://0x7f.0.0.1/t"],
        *["https://a.example", "https:///t", "https://ä.example/t", "https://xn--a.example/t"],
        *["https://a.example:0/t", "https://a.example:99999/t", "https://a.example\\@b/t", "ftp://a.example/t", ""],
        *["https://a_b.example/t", "https://-a.example/t", "https://a..example/t", "https://a.example./t"],
    ],
)
def test_an_endpoint_that_is_no_plain_https_url_is_refused(url: str) -> None:
    with pytest.raises(EndpointError):
        parse_endpoint(url, allow_insecure=False)


@pytest.mark.parametrize("place", ["a.example/path", "a.example?x", "u@a.example", "*.example", "a.example:x", ""])
def test_a_host_that_is_no_plain_host_is_refused(place: str) -> None:
    with pytest.raises(EndpointError):
        parse_host(place, allow_insecure=True)
