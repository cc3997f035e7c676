"""The refresh of a token at a real provider over HTTP, on every store."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import (
    AuditUnavailable,
    InvalidRequest,
    ProviderMisconfigured,
    ProviderUnavailable,
    RefreshInProgress,
    StoreUnavailable,
    TokenInactive,
)
from app.refresh.registry import ProviderRegistry
from app.tokens.due_tokens import DueBy, DueTokens
from app.tokens.models import RevealedToken, TokenId, TokenInput, TokenPatch, TokenStatus
from app.tokens.repository import TokenRepository
from app.tokens.reveals import RevealOptions
from tests.support.oauth.providers import provider_of
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.process.certificates import tls_contexts
from tests.support.refresh import CALLER, HERE, USER, Replica, replicas, settled
from tests.support.stores.failing import Failures, failing
from tests.support.stores.stores import SqliteStore, Store
from tests.support.waiting import eventually_async

HOUR = timedelta(hours=1)
SOON = timedelta(minutes=58)  # of an hour; the margin is five minutes


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


async def test_a_token_about_to_expire_is_refreshed_once(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        before = await replica.store(refresh_token=provider.seed())
        assert await replica.reveal() == ("first", True)
        replica.clock.passed += SOON
        access, met = await replica.reveal()
        assert (access != "first", met) == (True, True)
        assert await replica.reveal() == (access, True)
        row = await replica.row()
        assert provider.refreshes == 1
        assert row.version == before.version + 1
        assert row.expires_at is not None
        assert abs(row.expires_at - replica.clock() - HOUR) < timedelta(minutes=10)
        assert replica.trail.outcomes("refresh") == ["intent", "success"]
        replica.clock.passed += SOON  # the rotated refresh token was stored
        assert (await replica.reveal())[0] != access
        assert (provider.refreshes, provider.reuses) == (2, 0)


async def test_readers_of_all_replicas_share_one_refresh(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider, count=3) as several:
        await several[0].store(refresh_token=provider.seed())
        for replica in several:
            replica.clock.passed += HOUR
        answers = await asyncio.gather(*(several[n % 3].reveal() for n in range(60)))
        assert len(set(answers)) == 1
        assert (provider.refreshes, provider.reuses) == (1, 0)


async def test_min_ttl_decides_when_a_token_is_refreshed(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += timedelta(minutes=31)
        assert await replica.reveal() == ("first", True)
        assert await replica.reveal(min_ttl_seconds=0) == ("first", True)
        assert await replica.reveal(min_ttl_seconds=1_500) == ("first", True)
        # nobody can ask for more than half of the lifetime, which is 30 minutes
        assert (await replica.reveal(min_ttl_seconds=86_400))[0] != "first"
        assert await replica.reveal(min_ttl_seconds=86_400) == await replica.reveal()
        assert provider.refreshes == 1
        replica.clock.passed += 2 * HOUR
        assert (await replica.reveal(min_ttl_seconds=0))[1] is False
        assert provider.refreshes == 1


async def test_a_valid_token_is_answered_while_the_provider_is_down(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider) as [replica]:
        refresh_token = provider.seed()
        before = await replica.store(refresh_token=refresh_token)
        provider.always(Answer(status=503))
        replica.clock.passed += SOON
        assert await replica.reveal() == ("first", False)
        row = await replica.row()
        assert (row.version, row.refresh_state.attempts) == (before.version, 1)
        assert row.refresh_state.retry_at is not None
        asked = len(provider.requests)
        assert await replica.reveal() == ("first", False)
        assert len(provider.requests) == asked, "the next attempt is not due"
        replica.clock.passed += HOUR
        with pytest.raises(ProviderUnavailable):
            await replica.reveal()
        provider.always(None)
        replica.clock.passed += HOUR
        assert (await replica.reveal())[1] is True
        assert (await replica.row()).refresh_state.attempts == 0


async def test_a_refused_refresh_token_needs_the_user(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        refresh_token = provider.seed()
        await replica.store(refresh_token=refresh_token)
        provider.end_grant(refresh_token)
        replica.clock.passed += SOON
        with pytest.raises(TokenInactive):
            await replica.reveal()
        row = await replica.row()
        assert (row.status, row.status_reason) == (TokenStatus.NEEDS_REAUTH, "invalid_grant")
        asked = len(provider.requests)
        with pytest.raises(TokenInactive):
            await replica.reveal()
        assert len(provider.requests) == asked
        assert replica.trail.outcomes("refresh") == ["intent", "token_inactive"]


async def test_each_reader_of_a_refused_refresh_token_gets_the_refusal(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """They share one refresh, and so its error."""
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token="unknown-to-the-provider", expires_at=replica.clock())
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        readers = [asyncio.create_task(replica.reveal()) for _ in range(4)]
        await eventually_async(lambda: len(provider.requests) == 1)
        release.set()
        for error in await asyncio.gather(*readers, return_exceptions=True):
            assert isinstance(error, TokenInactive)
        assert len(provider.requests) == 1


async def test_a_wrong_client_secret_changes_no_row(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """It is the operator's fault, so no user must sign in again, and no other token is tried."""
    async with replicas(tokens, provider) as [replica]:
        provider.clients = {}
        before = await replica.store(refresh_token=provider.seed())
        other = TokenId(USER, "acme", "other")
        await replica.store(token_id=other, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        with pytest.raises(ProviderMisconfigured):
            await replica.reveal()
        row = await replica.row()
        assert (row.status, row.version, row.refresh_state.attempts) == (TokenStatus.OK, before.version, 0)
        assert row.refresh_state.holder is None
        asked = len(provider.requests)
        with pytest.raises(ProviderMisconfigured):
            await replica.reveal(other)
        assert len(provider.requests) == asked, "the provider is left alone for some seconds"
        assert (provider.refreshes, provider.reuses) == (0, 0)


async def test_a_lost_answer_is_not_blamed_on_the_user(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        provider.script(Answer(commits=True, cut="answer"))
        replica.clock.passed += HOUR
        with pytest.raises(ProviderUnavailable):
            await replica.reveal()
        assert (await replica.row()).refresh_state.failure == "answer_lost"
        replica.clock.passed += HOUR
        with pytest.raises(TokenInactive):
            await replica.reveal()
        row = await replica.row()
        assert (row.status, row.status_reason) == (TokenStatus.NEEDS_REAUTH, "refresh_outcome_lost")


async def test_a_token_stored_during_a_refresh_stays(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with _during_a_refresh(tokens, provider) as (replica, refreshing, release):
        await replica.store(access_token="stored", refresh_token="theirs")
        release.set()
        assert (await refreshing).access_token.get_secret_value() == "stored"
        assert await replica.reveal() == ("stored", True)
        assert replica.trail.outcomes("refresh") == ["intent", "superseded"]


@pytest.mark.parametrize("winner", ["put", "delete"])
async def test_the_tokens_of_a_superseded_refresh_are_not_revoked(
    tmp_path: Path, provider: OAuthStandIn, winner: str
) -> None:
    """The winner may hold tokens of the same grant, and a provider may end the grant with the first of its tokens."""
    async with (
        SqliteStore(tmp_path / "vault.db").open() as tokens,
        _during_a_refresh(tokens, provider) as (replica, refreshing, release),
    ):
        if winner == "put":
            await replica.store(access_token="stored", refresh_token="theirs")
        else:
            await replica.vault.delete(HERE, caller=CALLER)
        release.set()
        await asyncio.gather(refreshing, return_exceptions=True)
        assert replica.trail.outcomes("refresh") == ["intent", "superseded"]
        assert provider.revoked == []


async def test_a_rotation_during_a_refresh_stays(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with _during_a_refresh(tokens, provider) as (replica, refreshing, release):
        given = TokenInput(access_token=SecretStr("rotated"), expires_at=replica.clock() + HOUR)
        await replica.vault.rotate(HERE, given, caller=CALLER)
        release.set()
        assert (await refreshing).access_token.get_secret_value() == "rotated"


async def test_a_patch_during_a_refresh_loses_no_refresh_token(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with _during_a_refresh(tokens, provider) as (replica, refreshing, release):
        await replica.vault.patch(HERE, TokenPatch(metadata={"course": 4}), caller=CALLER)
        release.set()
        await refreshing
        row = await replica.row()
        assert row.metadata == {"course": 4}
        replica.clock.passed += HOUR
        await replica.reveal()
        assert (provider.refreshes, provider.reuses) == (2, 0)


async def test_a_token_deleted_during_a_refresh_does_not_come_back(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with _during_a_refresh(tokens, provider) as (replica, refreshing, release):
        await replica.vault.delete(HERE, caller=CALLER)
        release.set()
        with pytest.raises(Exception, match="no such token"):
            await refreshing
        assert await tokens.get(HERE) is None


async def test_a_caller_that_leaves_cancels_no_refresh(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with _during_a_refresh(tokens, provider) as (replica, refreshing, release):
        refreshing.cancel()
        await asyncio.gather(refreshing, return_exceptions=True)
        release.set()
        row = await settled(replica)
        assert row.refresh_state.attempts == 0
        assert await replica.reveal() != ("first", True)
        assert (provider.refreshes, provider.reuses) == (1, 0)


async def test_nothing_is_spent_without_an_audit_event(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        refresh_token = provider.seed()
        await replica.store(refresh_token=refresh_token)
        replica.clock.passed += HOUR
        replica.trail.refuses = True
        with pytest.raises(AuditUnavailable):
            await replica.reveal()
        assert (provider.requests, provider.accepts(refresh_token)) == ([], True)


@pytest.mark.parametrize("kind", ["refused", "answers_lost"])
async def test_a_claim_that_fails_spends_nothing(tokens: TokenRepository, provider: OAuthStandIn, kind: str) -> None:
    """With a lost answer the row is read back; only if that fails as well is the outcome unknown."""
    failures = Failures()
    async with replicas(failing(tokens, failures), provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        getattr(failures, kind)["claim_refresh"] = 1
        if kind == "refused":
            with pytest.raises(StoreUnavailable):
                await replica.reveal()
            assert provider.requests == []
        assert (await replica.reveal())[1] is True
        assert (provider.refreshes, provider.reuses) == (1, 0)


@pytest.mark.parametrize("kind", ["refused", "answers_lost"])
async def test_new_tokens_outlive_an_outage_of_the_store(
    tokens: TokenRepository, provider: OAuthStandIn, kind: str
) -> None:
    failures = Failures()
    async with replicas(failing(tokens, failures), provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        getattr(failures, kind)["settle_refresh"] = 4
        access, met = await replica.reveal()
        assert (access != "first", met) == (True, True)
        assert (provider.refreshes, provider.reuses) == (1, 0)
        assert replica.trail.outcomes("refresh") == ["intent", "success"]


async def test_the_lease_of_a_dead_holder_is_taken_over(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=0)
        replica.clock.passed += HOUR
        assert (await replica.reveal())[1] is True
        assert (await replica.row()).refresh_state.generation == 2


async def test_a_long_wait_for_a_dead_holder_ends_in_a_refresh(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """The lease counts from its claim, not from the begin of the wait for it."""
    registry = ProviderRegistry(providers=[replace(provider_of(provider.entry()), lease_seconds=17)])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=3)
        replica.clock.passed += HOUR
        assert (await replica.reveal())[1] is True
        assert (provider.refreshes, provider.reuses) == (1, 0)


async def test_a_replica_that_ends_gives_up_its_wait_for_a_lease(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=600)
        replica.clock.passed += HOUR
        waiting = asyncio.create_task(replica.reveal())
        await eventually_async(lambda: replica.trail.outcomes("refresh") == ["intent"])
        await replica.refresher.close()
        with pytest.raises(RefreshInProgress):
            await waiting
        assert provider.requests == []


async def test_an_error_of_one_token_pauses_no_provider(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        other = TokenId(USER, "acme", "other")
        await replica.store(token_id=other, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        provider.script(Answer(status=400, body={"error": "invalid_scope"}))
        with pytest.raises(ProviderMisconfigured):
            await replica.reveal()
        assert (await replica.row()).refresh_state.retry_at is not None
        assert (await replica.reveal(other))[1] is True


async def test_a_pause_of_one_host_concerns_no_other_host(tokens: TokenRepository, tmp_path: Path) -> None:
    client, server = tls_contexts(tmp_path)
    with oauth_stand_in(tls=server, rotation="none") as bad, oauth_stand_in(tls=server, rotation="none") as good:
        bad.always(Answer(status=404))
        registry = ProviderRegistry(providers=[provider_of(good.canvas_entry(bad))])
        async with replicas(tokens, None, registry=registry, tls=client) as [replica]:
            ids = [TokenId(USER, "acme", name) for name in ("bad", "bad-too", "good")]
            for token_id, school in zip(ids, (bad, bad, good), strict=True):
                await replica.store(token_id=token_id, refresh_token=school.seed(), base_url=f"{school.origin}/api")
            replica.clock.passed += HOUR
            for token_id in ids[:2]:
                with pytest.raises(ProviderMisconfigured):
                    await replica.reveal(token_id)
            assert len(bad.requests) == 1
            assert (await replica.reveal(ids[2]))[1] is True


async def test_a_refusal_blames_no_token_stored_meanwhile(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    answer = Answer(status=400, body={"error": "invalid_grant"})
    async with _during_a_refresh(tokens, provider, answer) as (replica, refreshing, release):
        await replica.store(access_token="stored", refresh_token="theirs")
        release.set()
        assert (await refreshing).access_token.get_secret_value() == "stored"


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body={"access_token": "a", "refresh_token": []}),
        Answer(body={"access_token": "a", "refresh_token": {}}),
        Answer(status=429, headers={"Retry-After": "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"}),
    ],
)
async def test_a_strange_answer_is_put_off_like_an_outage(
    tokens: TokenRepository, provider: OAuthStandIn, answer: Answer
) -> None:
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        provider.script(answer)
        replica.clock.passed += HOUR
        with pytest.raises(ProviderUnavailable):
            await replica.reveal()
        state = (await replica.row()).refresh_state
        assert (state.holder, state.attempts) == (None, 1)


async def test_a_row_with_any_time_fails_no_other(
    store: Store, tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed(), expires_at=None)
        store.update_raw(row.id, last_refreshed="9999-12-31T23:59:59+00:00")
        assert await replica.reveal() == ("first", True)


async def test_readers_wait_for_the_refresh_of_another_replica(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    release = threading.Event()
    provider.script(Answer(commits=True, hold=release))
    async with replicas(tokens, provider, count=2) as [first, second]:
        await first.store(refresh_token=provider.seed())
        for replica in (first, second):
            replica.clock.passed += HOUR
        calls = [asyncio.create_task(first.reveal())]
        await eventually_async(lambda: len(provider.requests) == 1)
        calls.append(asyncio.create_task(second.reveal()))
        await asyncio.sleep(0.2)
        release.set()
        assert len(set(await asyncio.gather(*calls))) == 1
        assert (provider.refreshes, provider.reuses) == (1, 0)


async def test_an_api_token_stored_twice_is_not_sent_anywhere(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """PulsePlan stored a Canvas API token as its refresh token too."""
    async with replicas(tokens, provider) as [replica]:
        await replica.store(access_token="manual", refresh_token="manual")
        replica.clock.passed += 2 * HOUR
        assert await replica.reveal() == ("manual", False)
        revealed = await replica.vault.reveal(HERE, caller=CALLER)
        [of_batch] = await replica.vault.reveal_many([HERE], caller=CALLER, options=RevealOptions())
        assert isinstance(of_batch, RevealedToken)
        assert (revealed.refreshable, of_batch.refreshable) == (False, False)
        assert provider.requests == []


async def test_a_token_in_pulseplans_formats_is_left_alone(
    store: Store, tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """PulsePlan's service could not read it afterwards, and nothing binds its refresh token to this provider."""
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        store.update_raw(row.id, encryption_scheme=None)
        replica.clock.passed += 2 * HOUR
        assert await replica.reveal() == ("first", False)
        assert provider.requests == []


async def test_a_storm_of_rejections_causes_one_refresh(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider, count=2) as several:
        before = await several[0].store(refresh_token=provider.seed())
        calls = (several[n % 2].reveal(rejected_version=before.version) for n in range(30))
        answers = set(await asyncio.gather(*calls))
        assert len(answers) == 1
        assert provider.refreshes == 1
        assert answers == {await several[1].reveal(rejected_version=before.version)}
        assert provider.refreshes == 1


async def test_a_refresh_that_is_asked_for_and_impossible_is_refused(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=None)
        with pytest.raises(InvalidRequest):
            await replica.reveal(rejected_version=row.version)


async def test_an_omitted_refresh_token_is_kept(tokens: TokenRepository) -> None:
    with oauth_stand_in(rotation="none") as provider:
        async with replicas(tokens, provider) as [replica]:
            await replica.store(refresh_token=provider.seed())
            for refreshes in (1, 2):
                replica.clock.passed += HOUR
                await replica.reveal()
                assert provider.refreshes == refreshes


async def test_a_token_without_expiry_gets_the_providers_default(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider, default_lifetime_seconds=600) as [replica]:
        await replica.store(refresh_token=provider.seed(), expires_at=None)
        assert await replica.reveal() == ("first", True)
        replica.clock.passed += timedelta(seconds=601)
        provider.expires_in = None
        assert (await replica.reveal())[0] != "first"
        row = await replica.row()
        assert row.expires_at is not None
        assert row.expires_at - replica.clock() <= timedelta(seconds=600)


async def test_the_shortest_interval_counts_from_the_last_refresh(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    """A token that was merely stored has not been refreshed, and may expire before the interval ends."""
    registry = ProviderRegistry(providers=[provider_of(provider.entry(minimum_interval_seconds=86_400))])
    async with replicas(tokens, provider, registry=registry) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        assert (await replica.reveal())[1] is True
        replica.clock.passed += HOUR
        with pytest.raises(ProviderUnavailable):
            await replica.reveal()
        now = replica.clock()
        query = DueTokens(provider="acme", by=DueBy.EXPIRY, before=now + HOUR, now=now)
        assert (await tokens.due_for_refresh(query, after=None, limit=9)).tokens == [], "no round reads it"
        replica.clock.passed += timedelta(days=1)
        assert (await replica.reveal())[1] is True
        assert provider.refreshes == 2


async def test_no_access_token_in_use_is_invalidated(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """Canvas ends the old access token with a refresh, so it waits for the expiry."""
    async with replicas(tokens, provider, invalidates_old_access_token=True) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += SOON
        assert await replica.reveal(min_ttl_seconds=60) == ("first", True)
        assert await replica.reveal(min_ttl_seconds=600) == ("first", False)
        assert await replica.reveal() == ("first", True), "there is no margin"
        assert provider.requests == []
        replica.clock.passed += HOUR
        access, met = await replica.reveal(min_ttl_seconds=600)
        assert (access != "first", met) == (True, True)


async def test_a_batch_refreshes_the_tokens_that_are_due(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        ids = [TokenId(USER, "acme", f"s{number}") for number in range(6)]
        for number, token_id in enumerate(ids):
            expires_at = replica.clock() + (HOUR if number % 2 else timedelta(minutes=1))
            refresh_token = None if number == 4 else provider.seed()
            await replica.store(token_id=token_id, refresh_token=refresh_token, expires_at=expires_at)
        replica.clock.passed += timedelta(minutes=2)
        revealed = await replica.vault.reveal_many(ids, caller=CALLER, options=RevealOptions())
        fresh = [isinstance(one, RevealedToken) and one.access_token.get_secret_value() != "first" for one in revealed]
        assert fresh == [True, False, True, False, False, False]
        assert [isinstance(one, RevealedToken) and one.min_ttl_met for one in revealed] == [True] * 4 + [False, True]
        assert provider.refreshes == 2
        assert len(replica.trail.outcomes("reveal")) == 6


@asynccontextmanager
async def _during_a_refresh(
    tokens: TokenRepository, provider: OAuthStandIn, answer: Answer | None = None
) -> AsyncIterator[tuple[Replica, asyncio.Task[RevealedToken], threading.Event]]:
    """Yield a replica whose reveal waits for the provider's answer, and the event that lets it come."""
    release = threading.Event()
    provider.script(replace(answer or Answer(commits=True), hold=release))
    async with replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        refreshing = asyncio.create_task(replica.vault.reveal(HERE, caller=CALLER))
        await eventually_async(lambda: len(provider.requests) == 1)
        try:
            yield replica, refreshing, release
        finally:
            release.set()
            await asyncio.gather(refreshing, return_exceptions=True)
