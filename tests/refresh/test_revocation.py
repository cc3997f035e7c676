"""Revoking a token at a real provider over HTTP before it is deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import (
    AuditUnavailable,
    GrantRejected,
    ProviderMisconfigured,
    ProviderUnavailable,
    RefreshInProgress,
    RevocationUnsupported,
    StoreUnavailable,
    TokenInactive,
    TokenNotFound,
    VaultError,
    VersionConflict,
)
from app.refresh.providers import Revocation, Rotation
from app.refresh.registry import ProviderRegistry
from app.security.context import SecretField
from app.tokens.deletion import Receipt, RevocationOutcome
from app.tokens.models import (
    NO_PRECONDITION,
    Precondition,
    StoredToken,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenStatus,
)
from app.tokens.repository import TokenRepository
from tests.support.oauth.oidc import OidcServer
from tests.support.oauth.providers import provider_of
from tests.support.oauth.stand_in import REVOKE_PATH, Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, HERE, USER, Replica, replicas, settled
from tests.support.stores.failing import Failures, ProcessEnded, failing
from tests.support.stores.stores import SqliteStore, raw_row
from tests.support.stores.unreadable import damage
from tests.support.waiting import eventually_async

REVOKED, UNSUPPORTED, FAILED, UNKNOWN = (
    RevocationOutcome.REVOKED,
    RevocationOutcome.UNSUPPORTED,
    RevocationOutcome.FAILED,
    RevocationOutcome.UNKNOWN,
)
HOUR = timedelta(hours=1)


@pytest.fixture(scope="module")
def shared_provider() -> Iterator[OAuthStandIn]:
    with oauth_stand_in() as stand_in:
        yield stand_in


@pytest.fixture
def provider(shared_provider: OAuthStandIn) -> OAuthStandIn:
    shared_provider.always(None)
    shared_provider.requests.clear()
    shared_provider.revoked.clear()
    shared_provider.refreshes = shared_provider.reuses = 0
    return shared_provider


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[TokenRepository]:
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        yield tokens


async def _revoke(
    replica: Replica, *, required: bool = False, token_id: TokenId = HERE, version: int | None = None
) -> Receipt:
    condition = NO_PRECONDITION if version is None else Precondition(versions=frozenset({version}))
    return await replica.revocation.delete(token_id, required=required, caller=CALLER, precondition=condition)


async def test_the_refresh_token_is_revoked_before_the_access_token(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider) as [replica]:
        refresh_token = provider.seed()
        await replica.store(refresh_token=refresh_token)
        assert await _revoke(replica) == Receipt(REVOKED, REVOKED, deleted=True)
        assert provider.revoked == [refresh_token, "first"]
        assert [one.parameters["token_type_hint"] for one in provider.requests] == ["refresh_token", "access_token"]
        assert not provider.accepts(refresh_token)
        assert await tokens.get(HERE) is None
        assert replica.trail.outcomes("revoke") == ["intent", "success"]
        assert replica.trail.outcomes("delete") == ["intent", "success"]
        [revoked] = [one for one in replica.trail.kept if one.operation == "revoke" and one.outcome == "success"]
        assert revoked.revoked == (SecretField.ACCESS_TOKEN, SecretField.REFRESH_TOKEN)
        with pytest.raises(TokenNotFound):
            await _revoke(replica)


async def test_oidc_provider_refuses_both_secrets_afterwards(sqlite: TokenRepository, oidc: OidcServer) -> None:
    registry = ProviderRegistry(providers=[provider_of(oidc.entry())])
    with oauth_stand_in() as unused:
        async with replicas(sqlite, unused, registry=registry) as [replica]:
            seeded = oidc.seed()
            await replica.store(refresh_token=seeded, expires_at=replica.clock() - HOUR)
            await replica.reveal()
            assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)
            assert (oidc.counts().refreshes, oidc.counts().revoked) == (1, 2)
            await replica.store(refresh_token=seeded, expires_at=replica.clock() - HOUR)
            with pytest.raises(TokenInactive):
                await replica.reveal()


_FAILURES: dict[str, tuple[Answer, RevocationOutcome, type[VaultError]]] = {
    "500": (Answer(status=500), UNKNOWN, ProviderUnavailable),
    "429": (Answer(status=429), FAILED, ProviderUnavailable),
    "400": (Answer(status=400, body={"error": "invalid_request"}), FAILED, ProviderMisconfigured),
    "400 without a code": (Answer(status=400), UNKNOWN, ProviderUnavailable),
    "401": (Answer(status=401), FAILED, ProviderMisconfigured),
    "unsupported": (Answer(status=400, body={"error": "unsupported_token_type"}), UNSUPPORTED, RevocationUnsupported),
    "html": (Answer(body="<html>"), UNKNOWN, ProviderUnavailable),
    "a lost answer": (Answer(commits=True, cut="answer"), UNKNOWN, ProviderUnavailable),
    "a hanging provider": (Answer(delay_seconds=20), UNKNOWN, ProviderUnavailable),
}


@pytest.mark.parametrize("failure", _FAILURES)
async def test_a_failed_revocation_is_in_the_receipt(
    sqlite: TokenRepository, provider: OAuthStandIn, failure: str
) -> None:
    answer, outcome, error = _FAILURES[failure]
    async with replicas(sqlite, provider, total_seconds=0.4) as [replica]:
        await replica.store(refresh_token=provider.seed())
        kept = await replica.store(token_id=TokenId(USER, "acme", "kept"), refresh_token=provider.seed())
        provider.always(answer)
        assert await _revoke(replica) == Receipt(outcome, outcome, deleted=True)
        assert await sqlite.get(HERE) is None
        sent = len(provider.requests)
        with pytest.raises(error) as refused:
            await _revoke(replica, required=True, token_id=kept.token_id)
        assert refused.value.receipt == Receipt(FAILED, outcome, deleted=False)
        assert len(provider.requests) == sent + 1, "the access token of a token that is kept stays valid"
        row = await replica.row(kept.token_id)
        assert row == replace(kept, refresh_state=row.refresh_state)
        assert row.refresh_state.holder is None
        assert replica.trail.outcomes("delete")[-1] == error.code


async def test_nothing_is_sent_to_a_provider_that_is_down(sqlite: TokenRepository) -> None:
    with oauth_stand_in() as provider:
        async with replicas(sqlite, provider) as [replica]:
            await replica.store(refresh_token=provider.seed())
            provider.stop()
            with pytest.raises(ProviderUnavailable):
                await _revoke(replica, required=True)
            assert (await replica.reveal())[0] == "first"
            assert await _revoke(replica) == Receipt(FAILED, FAILED, deleted=True)


@pytest.mark.parametrize("case", ["no endpoint", "no entry", "PulsePlan's format"])
async def test_a_secret_that_cannot_be_revoked_is_sent_nowhere(
    tmp_path: Path, provider: OAuthStandIn, case: str
) -> None:
    store, token_id = SqliteStore(tmp_path / "vault.db"), HERE
    async with (
        store.open() as tokens,
        replicas(tokens, provider, revoke_url=None if case == "no endpoint" else provider.revoke_url) as [replica],
    ):
        token_id = TokenId(USER, "other") if case == "no entry" else HERE
        if case == "PulsePlan's format":
            store.insert_raw(
                **raw_row(user_id=USER, provider="acme", access_token="aa:bb:cc", refresh_token="dd:ee:ff")
            )
        else:
            await replica.store(token_id=token_id, refresh_token=provider.seed())
        with pytest.raises(RevocationUnsupported):
            await _revoke(replica, required=True, token_id=token_id)
        assert await tokens.get(token_id) is not None
        assert await _revoke(replica, token_id=token_id) == Receipt(UNSUPPORTED, UNSUPPORTED, deleted=True)
        assert await tokens.get(token_id) is None
        assert provider.requests == []


async def test_a_token_without_a_refresh_token_has_one_receipt(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    """So has PulsePlan's Canvas token, which is stored as both."""
    async with replicas(sqlite, provider) as [replica]:
        await replica.store(refresh_token=None)
        assert await _revoke(replica) == Receipt(REVOKED, None, deleted=True)
        await replica.store(refresh_token="manual", access_token="manual")
        assert await _revoke(replica) == Receipt(REVOKED, REVOKED, deleted=True)
        assert provider.revoked == ["first", "manual"]


async def test_nobody_gets_a_token_whose_revocation_was_half_done(
    sqlite: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(sqlite, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        provider.script(Answer(commits=True), Answer(status=500))
        with pytest.raises(ProviderUnavailable) as refused:
            await _revoke(replica, required=True)
        assert refused.value.receipt == Receipt(UNKNOWN, REVOKED, deleted=False)
        assert (await replica.row()).status is TokenStatus.REVOKED
        with pytest.raises(TokenInactive):
            await replica.reveal()
        # a repetition finds the refresh token unknown, which counts as revoked
        provider.script(Answer(status=400, body={"error": "invalid_token"}))
        assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)


async def test_a_refresh_in_progress_leaves_no_new_token_behind(
    tokens: TokenRepository, provider: OAuthStandIn
) -> None:
    async with replicas(tokens, provider, count=2) as [refreshing, deleting]:
        await refreshing.store(refresh_token=provider.seed(), expires_at=refreshing.clock() - HOUR)
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        reading = asyncio.create_task(refreshing.reveal())
        await eventually_async(lambda: provider.refreshes == 1)
        revoking = asyncio.create_task(_revoke(deleting, required=True))
        await asyncio.sleep(0.2)
        assert provider.revoked == [], "the lease is the refresh's"
        release.set()
        assert await revoking == Receipt(REVOKED, REVOKED, deleted=True)
        assert [token.partition("-")[0] for token in provider.revoked] == ["rt", "at"], "the new tokens"
        assert not provider.accepts(provider.revoked[0])
        await asyncio.gather(reading, return_exceptions=True)
        assert await tokens.get(HERE) is None


async def test_a_refresh_begins_no_more_during_a_revocation(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(sqlite, provider, count=2) as [deleting, reading]:
        await deleting.store(refresh_token=provider.seed(), expires_at=deleting.clock() - HOUR)
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        revoking = asyncio.create_task(_revoke(deleting))
        await eventually_async(lambda: len(provider.revoked) == 1)
        revealing = asyncio.create_task(reading.reveal())
        await eventually_async(lambda: reading.trail.outcomes("refresh") == ["intent"])
        release.set()
        assert await revoking == Receipt(REVOKED, REVOKED, deleted=True)
        with pytest.raises(TokenNotFound):
            await revealing
        assert provider.refreshes == 0


async def test_a_lease_that_does_not_end_revokes_nothing(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(sqlite, provider, lease_wait_seconds=0.2) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await sqlite.claim_refresh(row, holder=str(uuid4()), lease_seconds=600)
        with pytest.raises(RefreshInProgress):
            await _revoke(replica)
        assert provider.requests == []
        assert await sqlite.get(HERE) is not None


async def test_the_tokens_of_a_lost_refresh_are_not_reported_revoked(
    sqlite: TokenRepository, provider: OAuthStandIn
) -> None:
    """A holder that died may have got new tokens that nobody knows."""
    async with replicas(sqlite, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await sqlite.claim_refresh(row, holder=str(uuid4()), lease_seconds=0)
        await asyncio.sleep(0.01)  # the store's clock
        with pytest.raises(RevocationUnsupported) as refused:
            await _revoke(replica, required=True)
        assert refused.value.receipt == Receipt(FAILED, FAILED)
        assert provider.requests == []
        assert (await settled(replica)).refresh_state.may_have_successor
        assert await _revoke(replica) == Receipt(UNKNOWN, UNKNOWN, deleted=True)
        assert len(provider.revoked) == 2


async def _killed_before_the_deletion(tokens: TokenRepository, killed: Replica, failures: Failures) -> None:
    """End a process after it has revoked both secrets."""
    failures.ends_at = "delete"
    with pytest.raises(ProcessEnded):
        await _revoke(killed)
    failures.ends_at = None
    assert await tokens.get(HERE) is not None
    await asyncio.sleep(0.01)  # the store's clock


async def test_a_revocation_that_was_killed_can_be_repeated(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    """It has issued no tokens, unlike a refresh that was killed."""
    failures = Failures()
    async with replicas(failing(tokens, failures), provider, registry=_ended_leases(provider)) as [replica]:
        await replica.store(refresh_token=provider.seed())
        await _killed_before_the_deletion(tokens, replica, failures)
        provider.always(Answer(status=400, body={"error": "invalid_token"}))  # it knows neither any more
        assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)
        assert replica.trail.outcomes("revoke") == ["intent", "success", "intent", "success"]


async def test_a_refresh_after_a_killed_revocation_has_lost_no_answer(
    sqlite: TokenRepository, provider: OAuthStandIn
) -> None:
    failures = Failures()
    async with replicas(failing(sqlite, failures), provider) as [replica]:
        await replica.store(refresh_token=provider.seed(), expires_at=replica.clock() - HOUR)
        async with replicas(failing(sqlite, failures), provider, registry=_ended_leases(provider)) as [killed]:
            await _killed_before_the_deletion(sqlite, killed, failures)
        with pytest.raises(TokenInactive):
            await replica.reveal()
        row = await replica.row()
        assert (row.status, row.status_reason) == (TokenStatus.NEEDS_REAUTH, "invalid_grant")


async def test_a_killed_revocation_hides_no_lost_refresh(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    failures = Failures()
    async with replicas(failing(sqlite, failures), provider, registry=_ended_leases(provider)) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        assert await sqlite.claim_refresh(row, holder=str(uuid4()), lease_seconds=0)
        await asyncio.sleep(0.01)  # the store's clock
        await _killed_before_the_deletion(sqlite, replica, failures)
        with pytest.raises(RevocationUnsupported):
            await _revoke(replica, required=True)
        assert await _revoke(replica) == Receipt(UNKNOWN, UNKNOWN, deleted=True)


def _ended_leases(provider: OAuthStandIn) -> ProviderRegistry:
    """Return a registry whose leases end at once, as those of a process that was killed do in time."""
    return ProviderRegistry(providers=[replace(provider_of(provider.entry()), lease_seconds=0)])


@pytest.mark.parametrize("case", ["answer lost", "holder died"])
async def test_a_rotation_that_keeps_a_spent_refresh_token_proves_no_revocation(
    tokens: TokenRepository, provider: OAuthStandIn, case: str
) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed(), expires_at=replica.clock() - HOUR)
        if case == "answer lost":
            provider.script(Answer(commits=True, cut="answer"))
            with pytest.raises(ProviderUnavailable):
                await replica.reveal()
        else:
            assert await tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=600)
        given = TokenInput(access_token=SecretStr("rotated"), expires_at=replica.clock() + HOUR)
        rotated = await replica.vault.rotate(HERE, given, caller=CALLER)
        assert (rotated.refresh_state.holder, rotated.refresh_state.failure) == (None, "answer_lost")
        with pytest.raises(RevocationUnsupported):
            await _revoke(replica, required=True)
        await replica.vault.rotate(HERE, replace(given, refresh_token=SecretStr(provider.seed())), caller=CALLER)
        assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)


async def test_the_successor_of_a_spent_refresh_token_can_be_revoked(
    sqlite: TokenRepository, provider: OAuthStandIn
) -> None:
    """The answer of a refresh comes after a rotation that has kept its refresh token."""
    async with replicas(sqlite, provider) as [replica]:
        await replica.store(refresh_token=provider.seed(), expires_at=replica.clock() - HOUR)
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        reading = asyncio.create_task(replica.reveal())
        await eventually_async(lambda: provider.refreshes == 1)
        given = TokenInput(access_token=SecretStr("rotated"), expires_at=replica.clock() + HOUR)
        await replica.vault.rotate(HERE, given, caller=CALLER)
        release.set()
        await reading
        assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)
        assert not provider.accepts(provider.revoked[0])


@pytest.mark.parametrize("change", ["put", "patch", "put with If-Match"])
async def test_a_write_during_a_revocation_leaves_no_secret_behind(
    tokens: TokenRepository, provider: OAuthStandIn, change: str
) -> None:
    async with replicas(tokens, provider) as [replica]:
        row = await replica.store(refresh_token=provider.seed())
        version = row.version if "If-Match" in change else None
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        revoking = asyncio.create_task(_revoke(replica, required=True, version=version))
        await eventually_async(lambda: len(provider.revoked) == 1)
        newer = provider.seed()
        if change == "patch":
            await replica.vault.patch(HERE, TokenPatch(metadata={"course": 4}), caller=CALLER)
        else:
            await replica.store(access_token="second", refresh_token=newer)
        release.set()
        if version is not None:
            with pytest.raises(VersionConflict) as conflict:
                await revoking
            assert conflict.value.receipt == Receipt(REVOKED, REVOKED)
            assert (await replica.reveal())[0] == "second"
            assert provider.accepts(newer)
            return
        assert await revoking == Receipt(REVOKED, REVOKED, deleted=True)
        assert await tokens.get(HERE) is None
        assert provider.accepts(newer) is (change == "patch")
        assert ("second" in provider.revoked) is (change == "put")


@pytest.mark.parametrize("failing_part", ["audit", "store", "version"])
async def test_nothing_is_revoked_that_could_not_be_deleted(
    sqlite: TokenRepository, provider: OAuthStandIn, failing_part: str
) -> None:
    failures = Failures()
    async with replicas(failing(sqlite, failures), provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        replica.trail.refuses = failing_part == "audit"
        failures.refused["claim_refresh"] = int(failing_part == "store")
        with pytest.raises((AuditUnavailable, StoreUnavailable, VersionConflict)) as refused:
            await _revoke(replica, version=1 if failing_part == "version" else None)
        assert (provider.requests, refused.value.receipt) == ([], None)
        assert isinstance(await sqlite.get(HERE), StoredToken)


@pytest.mark.parametrize("kind", ["refused", "answers_lost"])
async def test_a_deletion_outlasts_an_outage_of_the_store(
    sqlite: TokenRepository, provider: OAuthStandIn, kind: str
) -> None:
    failures = Failures()
    async with replicas(failing(sqlite, failures), provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        getattr(failures, kind)["delete"] = 2
        assert await _revoke(replica) == Receipt(REVOKED, REVOKED, deleted=True)
        assert await sqlite.get(HERE) is None
        assert len(provider.revoked) == 2


async def test_a_caller_that_leaves_stops_no_revocation(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(sqlite, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        release = threading.Event()
        provider.script(Answer(commits=True, hold=release))
        revoking = asyncio.create_task(_revoke(replica))
        await eventually_async(lambda: len(provider.revoked) == 1)
        revoking.cancel()
        await asyncio.gather(revoking, return_exceptions=True)
        release.set()
        await replica.revocation.close()
        assert len(provider.revoked) == 2
        assert await sqlite.get(HERE) is None


@pytest.mark.parametrize("case", ["refreshed first", "grant unknown", "single use", "no refresh token"])
async def test_an_access_token_that_revokes_itself_must_be_valid(
    sqlite: TokenRepository, provider: OAuthStandIn, case: str
) -> None:
    """Canvas revokes with the access token alone, which has usually expired."""
    rotation = Rotation.SINGLE_USE if case == "single use" else Rotation.NONE
    entry = replace(provider_of(provider.entry()), revocation=Revocation.DELETE_WITH_ACCESS_TOKEN, rotation=rotation)
    async with replicas(sqlite, provider, registry=ProviderRegistry(providers=[entry])) as [replica]:
        await replica.store(refresh_token=None if case == "no refresh token" else provider.seed())
        unauthorized, deleted = Answer(status=401), Answer(body={})
        if case == "refreshed first":
            provider.script(unauthorized, Answer(commits=True), deleted)
            assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)
            assert [one.path for one in provider.requests] == [REVOKE_PATH, "/oauth/token", REVOKE_PATH]
            assert provider.requests[2].headers["authorization"] not in {"Bearer first", "Bearer None"}
            return
        if case == "grant unknown":
            provider.script(unauthorized, Answer(status=400, body={"error": "invalid_grant"}))
            assert await _revoke(replica, required=True) == Receipt(REVOKED, REVOKED, deleted=True)
            return
        provider.script(unauthorized)
        with pytest.raises(GrantRejected):
            await _revoke(replica, required=True)
        assert len(provider.requests) == 1
        assert isinstance(await sqlite.get(HERE), StoredToken)


# --- erasing a user


async def test_an_erasure_revokes_every_token(tokens: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(tokens, provider) as [replica]:
        ids = [TokenId(USER, "acme", f"s{number}") for number in range(4)]
        for token_id in ids:
            await replica.store(token_id=token_id, refresh_token=provider.seed(), access_token=token_id.service_type)
        other = await replica.store(token_id=TokenId(USER, "other"), refresh_token="r")
        erasure = await replica.revocation.erase(USER, required=False, caller=CALLER)
        assert (erasure.deleted, erasure.kept, erasure.error) == (5, (), None)
        assert [(row.token_id, receipt) for row, receipt in erasure.receipts] == [
            *((token_id, Receipt(REVOKED, REVOKED, deleted=True)) for token_id in ids),
            (other.token_id, Receipt(UNSUPPORTED, UNSUPPORTED, deleted=True)),
        ]
        assert len(provider.revoked) == 8
        assert await tokens.list_for_user(USER) == []
        assert replica.trail.outcomes("erase_user") == ["intent", "success"]
        nothing = await replica.revocation.erase(USER, required=True, caller=CALLER)
        assert (nothing.deleted, nothing.receipts) == (0, ())


async def test_an_erasure_keeps_what_it_had_to_revoke(sqlite: TokenRepository, provider: OAuthStandIn) -> None:
    async with replicas(sqlite, provider) as [replica]:
        good = await replica.store(refresh_token=provider.seed())
        other = await replica.store(token_id=TokenId(USER, "other"), refresh_token="r")
        erasure = await replica.revocation.erase(USER, required=True, caller=CALLER)
        assert erasure.deleted == 1
        assert [one.row.token_id for one in erasure.kept] == [other.token_id]
        assert isinstance(erasure.error, RevocationUnsupported)
        assert [receipt.deleted for _, receipt in erasure.receipts] == [True, False]
        assert await sqlite.list_for_user(USER) == [other]
        assert await sqlite.get(good.token_id) is None
        assert replica.trail.outcomes("erase_user") == ["intent", "invalid_request"]


@pytest.mark.parametrize("required", [False, True])
async def test_an_erasure_ends_though_a_token_id_does_not_decode(
    tmp_path: Path, provider: OAuthStandIn, *, required: bool
) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    async with store.open() as tokens, replicas(tokens, provider) as [replica]:
        await replica.store(refresh_token=provider.seed())
        damage(store, USER, "acme", "service_type", b"\xff")
        erasing = replica.revocation.erase(USER, required=required, caller=CALLER)
        erasure = await asyncio.wait_for(erasing, 20)
        assert (erasure.deleted, len(erasure.kept)) == ((0, 1) if required else (1, 0))
        assert len(await tokens.list_for_user(USER)) == int(required)
        assert provider.requests == []
