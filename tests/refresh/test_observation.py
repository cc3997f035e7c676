"""Metrics, log lines and audit outcomes of refreshes; no provider name but one of the registry becomes a label."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import SecretStr
from structlog.testing import capture_logs

from app.errors import ProviderMisconfigured, ProviderUnavailable, TokenInactive
from app.observability.metrics.refresh import RefreshMetrics
from app.refresh.authorization import Authorization
from app.refresh.registry import ProviderRegistry
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.models import TokenId
from app.tokens.repository import TokenRepository
from tests.support.oauth.providers import provider_of
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.observability.exposed import Exposed, read
from tests.support.refresh import CALLER, HERE, USER, background_of, replicas
from tests.support.rewrap.stored_rows import key_settings
from tests.support.spool import left_in_spool
from tests.support.stores.failing import Failures, failing
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually_async, once_available

HOUR = timedelta(hours=1)


class Watched:
    """Metrics of refreshes alone."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.metrics = RefreshMetrics(self.registry)

    def seen(self) -> Exposed:
        self.metrics.publish()
        return read(generate_latest(self.registry).decode())

    def refreshes(self) -> dict[str, float]:
        """Return the refreshes of acme by outcome, without those that never were."""
        counted = self.seen().labelled("token_vault_refreshes_total")
        assert {dict(labels)["provider"] for labels in counted} <= {"acme"}
        return {dict(labels)["outcome"]: value for labels, value in counted.items() if value}


@pytest.fixture
async def tokens(tmp_path: Path) -> AsyncIterator[TokenRepository]:
    """One store is enough: nothing here depends on it."""
    repository = SqliteRepository(path=tmp_path / "vault.db")
    yield repository
    await repository.close()


@pytest.fixture
def provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def watched() -> Watched:
    return Watched()


async def test_each_refresh_is_counted_and_timed(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    async with replicas(tokens, provider, observer=watched.metrics) as [replica]:
        watched.metrics.follow(lambda: ["acme"])
        assert ("token_vault_refreshes_total", frozenset({("provider", "acme"), ("outcome", "success")})) in (
            watched.seen().series
        ), "so an alert sees the first increase"
        assert watched.refreshes() == {}
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        await replica.reveal()
        assert watched.refreshes() == {"success": 1}
        replica.clock.passed += HOUR
        provider.script(Answer(status=503))
        with pytest.raises(ProviderUnavailable):
            await replica.reveal()
        replica.clock.passed += HOUR
        provider.script(Answer(status=401, body={"error": "invalid_client"}))
        with pytest.raises(ProviderMisconfigured):
            await replica.reveal()
        assert watched.refreshes() == {"success": 1, "provider_unavailable": 1, "provider_misconfigured": 1}
        seen = watched.seen()
        for name in ("refresh_duration", "provider_request_duration"):
            assert seen.value(f"token_vault_{name}_seconds_count", provider="acme") == 3
            assert 0 < seen.value(f"token_vault_{name}_seconds_sum", provider="acme") < 60


async def test_an_alias_is_counted_under_its_entry(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry(), name="google")])
    gmail = TokenId(USER, "gmail")
    async with replicas(tokens, None, registry=registry, observer=watched.metrics) as [replica]:
        await replica.store(token_id=gmail, refresh_token=provider.seed())
        replica.clock.passed += HOUR
        await replica.reveal(gmail)
    assert watched.seen().value("token_vault_refreshes_total", provider="google", outcome="success") == 1
    assert "gmail" not in watched.seen().text


@pytest.mark.parametrize(("lost", "reason"), [(False, "refused"), (True, "outcome_lost")])
async def test_a_token_that_needs_its_user_is_counted_with_the_reason(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched, lost: bool, reason: str
) -> None:
    async with replicas(tokens, provider, observer=watched.metrics) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        if lost:
            provider.script(Answer(commits=True, cut="answer"))
            with pytest.raises(ProviderUnavailable):
                await replica.reveal()
            replica.clock.passed += HOUR
        provider.script(Answer(status=400, body={"error": "invalid_grant"}))
        with pytest.raises(TokenInactive):
            await replica.reveal()
    counted = {
        dict(labels)["reason"]: value
        for labels, value in watched.seen().labelled("token_vault_needs_reauth_total").items()
    }
    assert {name: value for name, value in counted.items() if value} == {reason: 1}
    assert watched.refreshes()["token_inactive"] == 1


async def test_an_answer_is_unwritten_until_the_store_takes_it(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    failures = Failures()
    async with replicas(failing(tokens, failures), provider, observer=watched.metrics) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.clock.passed += HOUR
        failures.refused["settle_refresh"] = 4
        with capture_logs() as lines:
            reading = asyncio.create_task(replica.reveal())
            await eventually_async(lambda: _unwritten(watched) == 1)
            await reading
        assert (_unwritten(watched), watched.refreshes()) == (0, {"success": 1})
        assert [(line["event"], line["provider"]) for line in lines] == [
            ("refresh_unwritten", "acme"),
            ("provider_answer_settled", "acme"),
        ]


async def test_a_redeemed_code_is_unwritten_until_it_is_stored(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    failures = Failures(refused={"insert": 1})
    given = Authorization(code=SecretStr(provider.seed_code()), redirect_uri="https://api.example/cb")
    async with replicas(failing(tokens, failures), provider, observer=watched.metrics) as [replica]:
        exchange = asyncio.create_task(replica.exchange.exchange(HERE, given, caller=CALLER))
        await eventually_async(lambda: _unwritten(watched) == 1)
        assert (await exchange).created
        assert _unwritten(watched) == 0


async def test_a_lease_taken_over_is_counted_and_logged(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    async with replicas(tokens, provider, observer=watched.metrics) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=0)
        replica.clock.passed += HOUR
        with capture_logs() as lines:
            await replica.reveal()
        assert watched.seen().value("token_vault_refresh_takeovers_total", provider="acme") == 1
        assert [line["event"] for line in lines] == ["refresh_taken_over"]


async def test_the_oldest_due_token_of_a_background_round_is_shown(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    registry = ProviderRegistry(providers=[provider_of(provider.entry())])
    async with replicas(tokens, provider, registry=registry, observer=watched.metrics) as [replica]:
        background = background_of(replica, registry, observer=watched.metrics)
        for service_type in ("one", "two"):
            await replica.store(token_id=TokenId(USER, "acme", service_type), refresh_token=provider.seed())
        for passed, least in ((timedelta(0), 0), (HOUR, 300), (timedelta(0), 0)):
            replica.clock.passed += passed
            await background.run_once()
            overdue = watched.seen().value("token_vault_refresh_overdue_seconds", provider="acme")
            assert least <= overdue < least + 60


async def test_an_api_token_stored_twice_is_no_failed_refresh(
    tokens: TokenRepository, provider: OAuthStandIn, watched: Watched
) -> None:
    async with replicas(tokens, provider, observer=watched.metrics) as [replica]:
        await replica.store(access_token="manual", refresh_token="manual")
        replica.clock.passed += 2 * HOUR
        await replica.reveal()
        assert replica.trail.outcomes("refresh") == ["not_refreshable"]
        assert watched.refreshes() == {"not_refreshable": 1}


def _unwritten(watched: Watched) -> float:
    return watched.seen().value("token_vault_refreshes_unwritten", provider="acme")


@pytest.mark.parametrize(
    ("left", "counted"), [("key gone", (0, 1)), ("damaged", (0, 1)), ("foreign", (0, 1)), ("store down", (1, 0))]
)
async def test_what_dead_processes_left_in_the_spool_is_counted(
    tmp_path: Path, provider: OAuthStandIn, watched: Watched, left: str, counted: tuple[int, int]
) -> None:
    spool, failures = tmp_path / "spool", Failures()
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        options: dict[str, Any] = {"spool": spool, "observer": watched.metrics, "encryption_settings": key_settings(1)}
        async with replicas(failing(tokens, failures), provider, **options) as [replica]:
            assert replica.recovery is not None
            await once_available(lambda: replica.store(refresh_token=provider.seed()))
            unwritten = await left_in_spool(replica, spool, key_version=2 if left == "key gone" else 1)
            if left == "damaged":
                unwritten.file.write_bytes(b"")
            elif left == "foreign":
                unwritten.file.rename(spool / "notes.txt")
            elif left == "store down":
                failures.down = True
            await replica.recovery.run_once()
            assert _in_spool(watched) == counted
            failures.down = False
            for file in [] if left == "store down" else list(spool.iterdir()):
                file.unlink()
            await replica.recovery.run_once()
            assert _in_spool(watched) == (0, 0)


def _in_spool(watched: Watched) -> tuple[float, float]:
    waiting, refused = (
        watched.seen().value("token_vault_refresh_spool_files", state=s) for s in ("waiting", "refused")
    )
    return waiting, refused
