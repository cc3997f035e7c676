"""Background refresh: due tokens, in order, on any number of replicas, on every store."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.refresh.registry import ProviderRegistry
from app.refresh.rounds import CONCURRENT, RefreshRounds, RoundPlan, RoundReport
from app.tokens.freshness import NotRefreshableError
from app.tokens.models import TokenId, TokenPatch, TokenStatus
from app.tokens.repository import TokenRepository
from tests.support.oauth.providers import provider_of
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.process.certificates import tls_contexts
from tests.support.refresh import CALLER, USER, background_of, replicas
from tests.support.sizes import size
from tests.support.stores.stores import SqliteStore, Store
from tests.support.waiting import eventually_async

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
        assert await background_of(replica, registry).run_once() == 1
        assert provider.refreshes == 1
        assert (await replica.reveal(IDS[0]))[0] != "first"
        assert await background_of(replica, registry).run_once() == 0


async def test_replicas_refresh_each_token_once(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, count=3, registry=registry) as several:
        for token_id in IDS:
            await several[0].store(token_id=token_id, refresh_token=provider.seed())
        for replica in several:
            replica.clock.passed += HOUR
        await asyncio.gather(*(background_of(replica, registry).run_once() for replica in several))
        assert (provider.refreshes, provider.reuses) == (len(IDS), 0)


async def test_tokens_that_fail_are_put_off(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for token_id in IDS:
            await replica.store(token_id=token_id, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        provider.always(Answer(status=500))
        assert await background_of(replica, registry).run_once() == 0
        asked = len(provider.requests)
        assert asked == len(IDS)
        provider.always(None)
        assert await background_of(replica, registry).run_once() == 0
        assert len(provider.requests) == asked
        replica.clock.passed += HOUR
        assert await background_of(replica, registry).run_once() == len(IDS)


async def test_tokens_that_stay_due_delay_no_others(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """Nothing is written to the rows of API tokens stored twice, so each round finds them again."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for token_id in IDS:
            await replica.store(token_id=token_id, access_token="manual", refresh_token="manual")
        last = TokenId(USER, "acme", "last")
        await replica.store(token_id=last, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        assert await background_of(replica, registry, page_rows=3).run_once() == 1
        assert (await replica.reveal(last))[0] != "first"


async def test_pulseplans_formats_are_left_alone(store: Store, tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        store.update_raw(row.id, encryption_scheme=None)
        replica.clock.passed += HOUR
        assert await background_of(replica, registry).run_once() == 0
        unbound, until = replace(row, encryption_scheme=None), asyncio.get_running_loop().time() + 60
        with pytest.raises(NotRefreshableError):
            await replica.refresher.refresh(unbound, caller=CALLER, until=until)
        assert provider.requests == []


async def test_tokens_that_always_fail_delay_no_others(tmp_path: Path, provider: OAuthStandIn) -> None:
    """They fail again at their next attempt, and take up to the time limit of a request then."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    bad, others = size(6, 50), size(24, 1_000)
    async with (
        SqliteStore(tmp_path / "vault.db").open() as tokens,
        replicas(tokens, provider, registry=registry) as [replica],
    ):
        seeds = [provider.seed() for _ in range(bad)]
        for number, seed in enumerate(seeds):
            await replica.store(token_id=TokenId(USER, "acme", f"bad{number}"), refresh_token=seed)
        provider.answers_for = dict.fromkeys(seeds, Answer(status=500))
        replica.clock.passed += HOUR
        assert await background_of(replica, registry).run_once() == 0
        for number in range(others):
            await replica.store(token_id=TokenId(USER, "acme", f"other{number}"), refresh_token=provider.seed())
        replica.clock.passed += 2 * HOUR
        release = threading.Event()
        provider.answers_for = dict.fromkeys(seeds, Answer(status=500, hold=release))
        running = asyncio.create_task(background_of(replica, registry).run_once())
        await eventually_async(lambda: provider.refreshes == others)
        release.set()
        assert await running == others


async def test_a_paused_provider_ends_its_round(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for number in range(20):
            await replica.store(token_id=TokenId(USER, "acme", f"s{number}"), refresh_token=provider.seed())
        replica.clock.passed += HOUR
        provider.always(Answer(status=429, headers={"Retry-After": "60"}))
        background = background_of(replica, registry)
        assert await background.run_once() == 0
        assert len(provider.requests) <= CONCURRENT
        asked = len(provider.requests)
        assert await background.run_once() == 0
        assert len(provider.requests) == asked


@pytest.mark.parametrize(
    "answer",
    [
        Answer(status=401, body={"error": "invalid_client"}),
        Answer(status=404),
        Answer(status=429, headers={"Retry-After": "60"}),
    ],
    ids=lambda answer: str(answer.status),
)
async def test_a_paused_host_delays_no_other_host(tmp_path: Path, answer: Answer) -> None:
    """The tokens of one Canvas host come first and stay due. They are left out, and use no turn of the entry's rate."""
    client, server = tls_contexts(tmp_path)
    with oauth_stand_in(tls=server, rotation="none") as bad, oauth_stand_in(tls=server, rotation="none") as good:
        bad.always(answer)
        registry = ProviderRegistry(providers=[provider_of(good.canvas_entry(bad, requests_per_second=5), "canvas")])
        async with (
            SqliteStore(tmp_path / "vault.db").open() as tokens,
            replicas(tokens, None, registry=registry, tls=client) as [replica],
        ):
            expired = replica.clock() - timedelta(minutes=1)
            for number in range(40):
                await replica.store(
                    token_id=TokenId(USER, "canvas", f"s{number}"),
                    refresh_token=(bad if number < 37 else good).seed(),
                    base_url=(bad if number < 37 else good).origin,
                    expires_at=expired + timedelta(seconds=number),
                )
            before = time.monotonic()
            assert await background_of(replica, registry, page_rows=10).run_once() == 3
            assert time.monotonic() - before < 36 / 5
            assert good.refreshes == 3
            assert len(bad.requests) <= CONCURRENT


async def test_idle_tokens_are_refreshed_at_half_of_their_limit(
    store: Store, tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """Also tokens without an expiry, and those whose access token lives for longer than that."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry(idle_days=10))])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        forever = replica.clock() + timedelta(days=300)
        for token_id, expires_at in zip(IDS, (None, forever, forever), strict=False):
            await replica.store(token_id=token_id, refresh_token=provider.seed(), expires_at=expires_at)
        row = await replica.row(IDS[0])
        store.update_raw(row.id, last_refreshed="2000-01-01T00:00:00+00:00")
        background = background_of(replica, registry)
        assert await background.run_once() == 1
        replica.clock.passed += timedelta(days=4)
        assert await background.run_once() == 1, "the one that has an expiry now"
        replica.clock.passed += timedelta(days=1, minutes=1)
        assert await background.run_once() == 3


async def test_a_token_that_cannot_be_refreshed_is_tried_once(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """An API token that is stored as both secrets: each attempt would decrypt it, and leave an event."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        await replica.store(access_token="manual", refresh_token="manual")
        replica.clock.passed += HOUR
        background = background_of(replica, registry)
        for _ in range(3):
            assert await background.run_once() == 0
        assert len(replica.trail.outcomes("refresh")) == 1
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        assert await background.run_once() == 1


async def test_a_token_of_a_host_that_is_not_allowed_is_tried_once(tmp_path: Path) -> None:
    """Its row stays as it is: the entry may be at fault. A changed entry tries it again at once."""
    client, server = tls_contexts(tmp_path)
    with oauth_stand_in(tls=server, rotation="none") as good, oauth_stand_in(tls=server, rotation="none") as other:
        registry = ProviderRegistry(providers=[provider_of(good.canvas_entry(), "canvas")])
        async with (
            SqliteStore(tmp_path / "vault.db").open() as tokens,
            replicas(tokens, None, registry=registry, tls=client) as [replica],
        ):
            given = {"refresh_token": other.seed(), "base_url": other.origin}
            row = await replica.store(token_id=TokenId(USER, "canvas"), expires_at=replica.clock(), **given)
            background = background_of(replica, registry)
            for _ in range(3):
                assert await background.run_once() == 0
            assert replica.trail.outcomes("refresh") == ["provider_misconfigured"]
            assert await replica.row(row.token_id) == row
            allowed = ProviderRegistry(providers=[provider_of(good.canvas_entry(other), "canvas")])
        async with (
            SqliteStore(tmp_path / "vault.db").open() as tokens,
            replicas(tokens, None, registry=allowed, tls=client) as [replica],
        ):
            assert await background_of(replica, allowed).run_once() == 1


async def test_names_of_one_entry_share_its_rate(tmp_path: Path, provider: OAuthStandIn) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry(requests_per_second=20), "google")])
    async with (
        SqliteStore(tmp_path / "vault.db").open() as tokens,
        replicas(tokens, provider, registry=registry) as [replica],
    ):
        for number in range(10):
            name = ("google", "gmail")[number % 2]
            await replica.store(token_id=TokenId(USER, name, f"s{number}"), refresh_token=provider.seed())
        replica.clock.passed += HOUR
        before = time.monotonic()
        assert await background_of(replica, registry).run_once() == 10
        assert time.monotonic() - before >= 9 / 20


async def test_a_round_refreshes_no_token_twice(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """The new tokens live for an hour, which is less than the round looks ahead."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        for number in range(6):
            await replica.store(
                token_id=TokenId(USER, "acme", f"s{number}"),
                refresh_token=provider.seed(),
                expires_at=replica.clock() + timedelta(minutes=number),
            )
        rounds = RefreshRounds(
            tokens=tokens,
            refresher=replica.refresher,
            providers=registry,
            caller=CALLER,
            page_rows=2,
            now=replica.clock,
        )
        report = RoundReport()
        await asyncio.wait_for(rounds.run("acme", RoundPlan(lead_seconds=7_200), report), timeout=60)
    assert (report.refreshed, provider.refreshes) == (6, 6)


async def test_a_token_whose_status_is_not_ok_is_left_alone(
    store: Store, tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """PulsePlan's code may set a status without `is_active`."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        soon = replica.clock() + timedelta(minutes=2)
        row = await replica.store(refresh_token=provider.seed(), expires_at=soon)
        store.update_raw(row.id, metadata={"status": "needs_reauth"})
        replica.clock.passed += timedelta(minutes=1)
        assert await background_of(replica, registry).run_once() == 0
        assert provider.requests == []
