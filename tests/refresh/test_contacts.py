"""A whole refresh and a whole exchange contact nothing but the public hosts of the provider's entry.

What is contacted is seen at the sockets of this process, so a check that comes too early, or is of another address than
the one that is used, shows here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import InvalidRequest, ProviderMisconfigured, ProviderUnavailable, VaultError
from app.refresh.authorization import Authorization
from app.refresh.provider_list import ProviderListError
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.models import TokenId, TokenStatus
from tests.support.oauth.contacts import watched_contacts
from tests.support.oauth.providers import provider_of
from tests.support.oauth.resolver import ScriptedResolver
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, Replica, replicas
from tests.support.stack.loopback import LOOPBACK

URL = "https://provider.example/token"
PUBLIC: dict[str, Any] = {"token_url": URL, "revoke_url": None, "allow_insecure": None}
CANVAS: dict[str, Any] = {
    **dict.fromkeys(("token_url", "revoke_url", "client_auth", "rotation", "allow_insecure")),
    "preset": "canvas",
    "allowed_hosts": ["school.example"],
}
ADDRESSES = {
    "metadata service": ["169.254.169.254"],
    "metadata service of containers": ["169.254.170.2"],
    "metadata service over IPv6": ["fd00:ec2::254"],
    "link-local": ["169.254.1.1"],
    "link-local over IPv6": ["fe80::1"],
    "loopback": [LOOPBACK],
    "loopback over IPv6": ["::1"],
    "loopback, mapped": ["::ffff:127.0.0.1"],
    "private": ["10.1.2.3"],
    "private over IPv6": ["fc00::1"],
    "carrier-grade NAT": ["100.64.0.1"],
    "unspecified": ["0.0.0.0"],  # noqa: S104  nothing listens
    "several": ["192.168.0.1", "::1", "172.16.0.1"],
}
BASE_URLS = [
    "https://other.example",
    "https://school.example.evil.example",
    "https://school.example:8443",
    "https://user@school.example",
    "https://school.example@169.254.169.254",
    "https://169.254.169.254/school.example",
    "https://[::1]/",
    "https://school。example",
    "https://ѕchool.example",  # noqa: RUF001  a Cyrillic letter
    "https://xn--chool-j7a.example",
    "http://school.example",
]


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@asynccontextmanager
async def _replica(
    folder: Path, provider: OAuthStandIn, resolver: ScriptedResolver | None = None, **entry: Any
) -> AsyncIterator[Replica]:
    tokens = SqliteRepository(path=folder / "vault.db")
    try:
        async with replicas(tokens, provider, resolver=resolver, **entry) as [replica]:
            yield replica
    finally:
        await tokens.close()


async def _require_failures(
    replica: Replica,
    kind: type[VaultError],
    base_url: str | None = None,
    *,
    of_exchange: type[VaultError] | None = None,
) -> None:
    """Try a whole refresh, then a whole exchange; each must fail, change no row and store no token."""
    expired, new = (TokenId(str(uuid4()), "acme") for _ in range(2))
    before = await replica.store(
        token_id=expired, refresh_token="kept", base_url=base_url, expires_at=replica.clock() - timedelta(seconds=1)
    )
    with pytest.raises(kind):
        await replica.reveal(expired)
    row = await replica.row(expired)
    assert (row.status, row.version, row.refresh_ciphertext) == (
        TokenStatus.OK,
        before.version,
        before.refresh_ciphertext,
    )
    given = Authorization(code=SecretStr("the-code"), redirect_uri="https://app.example/back", base_url=base_url)
    with pytest.raises(of_exchange or kind):
        await replica.exchange.exchange(new, given, caller=CALLER)
    assert await replica.tokens.get(new) is None


@pytest.mark.parametrize("case", ADDRESSES)
async def test_an_address_that_is_not_public_is_not_contacted(
    provider: OAuthStandIn, tmp_path: Path, case: str
) -> None:
    resolver = ScriptedResolver(ADDRESSES[case])
    with watched_contacts() as contacts:
        async with _replica(tmp_path, provider, resolver, **PUBLIC) as replica:
            await _require_failures(replica, ProviderMisconfigured)
    assert resolver.questions > 0
    assert contacts == []


async def test_a_name_that_changes_its_address_is_not_contacted(provider: OAuthStandIn, tmp_path: Path) -> None:
    resolver = ScriptedResolver(["8.8.8.8"], [LOOPBACK])
    await resolver.resolve("provider.example")  # a check before the connection finds a public address
    with watched_contacts() as contacts:
        async with _replica(tmp_path, provider, resolver, **PUBLIC) as replica:
            await _require_failures(replica, ProviderMisconfigured)
    assert contacts == []


@pytest.mark.parametrize("base_url", [None, *BASE_URLS])
async def test_a_base_url_outside_the_allowed_hosts_is_not_contacted(
    provider: OAuthStandIn, tmp_path: Path, base_url: str | None
) -> None:
    resolver = ScriptedResolver([LOOPBACK])
    with watched_contacts() as contacts:
        async with _replica(tmp_path, provider, resolver, **CANVAS) as replica:
            await _require_failures(replica, ProviderMisconfigured, base_url, of_exchange=InvalidRequest)
            assert replica.trail.outcomes("exchange") == ["invalid_request"], "there was no intent"
    assert (resolver.questions, contacts) == (0, [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_contacts_the_provider_alone(provider: OAuthStandIn, tmp_path: Path, status: int) -> None:
    with oauth_stand_in() as other, watched_contacts() as contacts:
        provider.always(Answer(status=status, headers={"Location": other.token_url}))
        async with _replica(tmp_path, provider) as replica:
            await _require_failures(replica, ProviderUnavailable)
        assert other.connections == 0
    assert contacts == [(LOOPBACK, provider.port)] * 2


@pytest.mark.parametrize(
    "url",
    [
        "https://user:password@provider.example/token",
        "https://prövider.example/token",
        "https://xn--prvider-4ya.example/token",
        "https://169.254.169.254/token",
        "https://[fd00:ec2::254]/token",
        "https://2852039166/token",
        "http://provider.example/token",
    ],
)
def test_an_entry_with_such_a_url_is_refused_before_any_request(provider: OAuthStandIn, url: str) -> None:
    with pytest.raises(ProviderListError):
        provider_of(provider.entry(**{**PUBLIC, "token_url": url}))
