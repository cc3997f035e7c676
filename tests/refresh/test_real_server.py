"""The client against oidc-provider, a certified server that nobody here wrote."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import SecretStr

from app.errors import GrantRejected, ProviderMisconfigured
from app.refresh.provider_check import check_provider
from app.refresh.provider_client import ProviderClient, ProviderTokens
from app.refresh.provider_connection import ProviderConnections
from app.refresh.providers import OAuthProvider
from tests.support.oauth.oidc import SIGNING_CLIENT_ID, Counts, OidcServer
from tests.support.oauth.providers import provider_client, provider_of
from tests.support.stack.loopback import PLAIN_HTTP


async def _refresh(client: ProviderClient, provider: OAuthProvider, token: SecretStr) -> ProviderTokens:
    return await client.refresh(provider, refresh_token=token, base_url=None, scopes=())


async def test_a_chain_of_refreshes_rotates_and_a_reuse_ends_it(oidc: OidcServer) -> None:
    provider = provider_of(oidc.entry())
    spent = token = SecretStr(oidc.seed())
    async with provider_client() as client:
        for _ in range(3):
            tokens = await _refresh(client, provider, token)
            assert tokens.refresh_token not in {None, token}
            assert tokens.expires_in_seconds == 3600
            assert tokens.scopes is not None
            assert "calendar" in tokens.scopes
            assert tokens.refresh_token is not None
            token = tokens.refresh_token
        with pytest.raises(GrantRejected) as reused:
            await _refresh(client, provider, spent)
        with pytest.raises(GrantRejected):
            await _refresh(client, provider, token)
    assert reused.value.reason == "invalid_grant"
    assert oidc.counts() == Counts(refreshes=3, reuses=1, rejected=2, revoked=0)


async def test_a_signed_assertion_is_verified_by_the_server(oidc: OidcServer) -> None:
    entry = oidc.entry(client_auth="private_key_jwt", client_id=SIGNING_CLIENT_ID, client_secret=oidc.signing_key)
    async with provider_client() as client:
        tokens = await _refresh(client, provider_of(entry), SecretStr(oidc.seed(client_id=SIGNING_CLIENT_ID)))
    assert tokens.refresh_token is not None


async def test_a_wrong_secret_spends_nothing_and_the_next_one_works(oidc: OidcServer) -> None:
    token = SecretStr(oidc.seed())
    right = oidc.entry()["client_secret"]
    async with provider_client() as client:
        with pytest.raises(ProviderMisconfigured):
            await _refresh(client, provider_of(oidc.entry(client_secret="wrong")), token)
        assert oidc.counts().refreshes == 0
        entry = oidc.entry(client_secret="wrong", previous_client_secret=right)
        await _refresh(client, provider_of(entry), token)
    assert oidc.counts().refreshes == 1


async def test_a_revoked_refresh_token_no_longer_works(oidc: OidcServer) -> None:
    provider, token = provider_of(oidc.entry()), SecretStr(oidc.seed())
    async with provider_client() as client:
        await client.revoke(provider, token=token, hint="refresh_token", base_url=None)
        with pytest.raises(GrantRejected):
            await _refresh(client, provider, token)
        await client.revoke(provider, token=token, hint="refresh_token", base_url=None)  # unknown by now


async def test_many_grants_are_refreshed_at_once(oidc: OidcServer) -> None:
    provider = provider_of(oidc.entry())
    grants = [SecretStr(oidc.seed()) for _ in range(20)]
    async with provider_client() as client:
        await asyncio.gather(*(_refresh(client, provider, token) for token in grants))
    assert oidc.counts() == Counts(refreshes=20, reuses=0, rejected=0, revoked=0)


async def test_the_check_of_a_provider_spends_nothing(oidc: OidcServer) -> None:
    connections = ProviderConnections(tls=PLAIN_HTTP)
    findings = [finding async for finding in check_provider(provider_of(oidc.entry()), connections)]
    await connections.close()
    assert [finding.problem for finding in findings] == [None, None]
    assert oidc.counts() == Counts(refreshes=0, reuses=0, rejected=0, revoked=0)
