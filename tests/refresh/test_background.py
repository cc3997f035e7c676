"""Background refresh: due tokens, in order, on any number of replicas, on every store."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.refresh.background import BackgroundRefresh
from app.refresh.registry import ProviderRegistry
from app.tokens.freshness import NotRefreshableError
from app.tokens.models import TokenId, TokenPatch, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.oauth.providers import provider_of
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, USER, Replica, replicas
from tests.support.stores.stores import Store

HOUR = timedelta(hours=1)
IDS = [TokenId(USER, "acme", f"s{number}") for number in range(8)]


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


async def test_due_tokens_are_refreshed_and_no_others(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        soon = replica.clock() + timedelta(minutes=2)
        kinds: dict[str, dict[str, Any]] = {
            "due": {"expires_at": soon},
            "later": {},
            "no refresh token": {"expires_at": soon, "refresh_token": None},
            "never expires": {"expires_at": None},
            "inactive": {"expires_at": soon},
        }
        for token_id, (kind, given) in zip(IDS, kinds.items(), strict=False):
            await replica.store(token_id=token_id, **({"refresh_token": provider.seed()} | given))
            if kind == "inactive":
                patch = TokenPatch(status=TokenStatus.REVOKED)
                await replica.vault.patch(token_id, patch, caller=CALLER)
        replica.clock.passed += timedelta(minutes=1)
        assert await _background(replica, registry).run_once() == 1
        assert provider.refreshes == 1
        assert (await replica.reveal(IDS[0]))[0] != "first"
        assert await _background(replica, registry).run_once() == 0


async def test_replicas_refresh_each_token_once(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, count=3, registry=registry) as several:
        for token_id in IDS:
            await several[0].store(token_id=token_id, refresh_token=provider.seed())
        for replica in several:
            replica.clock.passed += HOUR
        await asyncio.gather(*(_background(replica, registry).run_once() for replica in several))
        assert (provider.refreshes, provider.reuses) == (len(IDS), 0)


async def test_tokens_that_fail_are_put_off(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for token_id in IDS:
            await replica.store(token_id=token_id, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        provider.always(Answer(status=500))
        assert await _background(replica, registry).run_once() == 0
        asked = len(provider.requests)
        assert asked == len(IDS)
        provider.always(None)
        assert await _background(replica, registry).run_once() == 0
        assert len(provider.requests) == asked
        replica.clock.passed += HOUR
        assert await _background(replica, registry).run_once() == len(IDS)


async def test_tokens_that_stay_due_delay_no_others(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """Nothing is written to the rows of API tokens stored twice, so each round finds them again."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for token_id in IDS:
            await replica.store(token_id=token_id, access_token="manual", refresh_token="manual")
        last = TokenId(USER, "acme", "last")
        await replica.store(token_id=last, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        assert await _background(replica, registry, page_rows=3).run_once() == 1
        assert (await replica.reveal(last))[0] != "first"


async def test_pulseplans_formats_are_left_alone(store: Store, tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        store.update_raw(row.id, encryption_scheme=None)
        replica.clock.passed += HOUR
        assert await _background(replica, registry).run_once() == 0
        unbound, until = replace(row, encryption_scheme=None), asyncio.get_running_loop().time() + 60
        with pytest.raises(NotRefreshableError):
            await replica.refresher.refresh(unbound, caller=CALLER, until=until)
        assert provider.requests == []


def _background(replica: Replica, registry: ProviderRegistry, *, page_rows: int = 200) -> BackgroundRefresh:
    return BackgroundRefresh(
        tokens=replica.tokens,
        refresher=replica.refresher,
        providers=registry,
        interval_seconds=60,
        page_rows=page_rows,
        now=replica.clock,
    )
