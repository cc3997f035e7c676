"""Takeovers of a lease whose holder may still have the answer, and claims whose answer is lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from app.errors import ProviderUnavailable, RefreshInProgress, RevocationUnsupported, StoreUnavailable
from app.refresh.lease import TAKEOVER_SECONDS, lease_clock
from app.refresh.refresher import LONGEST_POLL_SECONDS
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, HERE, Replica, replicas
from tests.support.stores.failing import Failures, failing
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually_async, once_available

HOUR: Final = timedelta(hours=1)
MANY: Final = 1_000_000
GRACE_SECONDS: Final = 60.0  # longer than a test takes, so that no takeover spends anything


@dataclass(slots=True)
class Scene:
    """Two replicas of one store, with a token that has expired. The calls of the first one fail as a test says."""

    store: SqliteStore
    failures: Failures
    provider: OAuthStandIn
    first: Replica
    second: Replica

    async def expire(self, replica: Replica) -> None:
        """Let the lease end, by the store's clock."""
        self.store.update_raw((await replica.row()).id, refresh_leased_until=0)

    async def taken_from(self, holder: str | None) -> None:
        """Wait until another holder has the lease."""
        while True:
            state = (await self.second.row()).refresh_state
            if state.holder not in {holder, None}:
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def _scene(folder: Path, *, takeover_seconds: float = GRACE_SECONDS) -> AsyncIterator[Scene]:
    store, failures = SqliteStore(folder / "vault.db"), Failures()
    async with store.open() as tokens:
        with oauth_stand_in() as provider:
            async with (
                replicas(failing(tokens, failures), provider) as [first],
                replicas(tokens, provider, takeover_seconds=takeover_seconds) as [second],
            ):
                await once_available(lambda: first.store(refresh_token=provider.seed(), expires_at=first.clock()))
                yield Scene(store, failures, provider, first, second)


async def test_a_holder_writes_its_answer_into_the_lease_that_took_over(tmp_path: Path) -> None:
    """The store takes no writes for longer than the lease, while readers go on reading and one refresh has failed."""
    release = threading.Event()
    async with _scene(tmp_path) as scene:
        scene.provider.script(Answer(commits=True, hold=release))
        first = asyncio.create_task(scene.first.reveal())
        await eventually_async(lambda: len(scene.provider.requests) == 1)
        scene.failures.refused["settle_refresh"] = MANY
        release.set()
        holder = (await scene.second.row()).refresh_state.holder
        second = asyncio.create_task(scene.second.reveal())
        await scene.expire(scene.second)
        await scene.taken_from(holder)
        scene.store.update_raw((await scene.second.row()).id, refresh_attempts=1, refresh_failure="answer_lost")
        scene.failures.refused.clear()
        answers = await asyncio.wait_for(asyncio.gather(first, second), GRACE_SECONDS / 2)
        assert answers[0] == answers[1] != ("first", True)
        assert (scene.provider.refreshes, scene.provider.reuses) == (1, 0)
        row = await scene.second.row()
        assert scene.provider.accepts(await scene.second.refresh_token())
        assert (row.refresh_state.holder, row.refresh_state.failure, row.refresh_state.attempts) == (None, None, 0)


async def test_a_store_that_fails_during_the_grace_begins_it_anew(tmp_path: Path) -> None:
    """A holder that is cut off from the store can write only when it answers again."""
    async with _scene(tmp_path, takeover_seconds=0) as scene:
        row = await scene.first.row()
        assert await scene.first.tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=0)
        scene.failures.refused["read_back"] = 2
        access, met = await scene.first.reveal()
        assert (access != "first", met, scene.provider.refreshes) == (True, True, 1)
        assert scene.failures.refused["read_back"] == 0


async def test_the_time_in_which_a_replica_is_stopped_does_not_count(tmp_path: Path) -> None:
    """A machine that sleeps may stop the former holder of the lease as well."""
    async with _scene(tmp_path) as scene:
        tokens, stopped_seconds = scene.second.tokens, 0.0
        async with replicas(
            tokens, scene.provider, takeover_seconds=GRACE_SECONDS, monotonic=lambda: lease_clock() + stopped_seconds
        ) as [replica]:
            dead = str(uuid4())
            assert await tokens.claim_refresh(await replica.row(), holder=dead, lease_seconds=-1)
            taking = asyncio.create_task(replica.reveal())
            await scene.taken_from(dead)
            stopped_seconds = GRACE_SECONDS
            await asyncio.wait([taking], timeout=3 * LONGEST_POLL_SECONDS)
            await replica.refresher.close()
            with pytest.raises(RefreshInProgress):
                await taking
            assert scene.provider.requests == []


async def test_a_replica_that_ends_gives_the_lease_back_that_it_took_over(tmp_path: Path) -> None:
    async with _scene(tmp_path) as scene:
        row, dead = await scene.second.row(), str(uuid4())
        assert await scene.second.tokens.claim_refresh(row, holder=dead, lease_seconds=0)
        taking = asyncio.create_task(scene.second.reveal())
        await scene.taken_from(dead)
        await scene.second.refresher.close()
        with pytest.raises(RefreshInProgress):
            await taking
        state = (await scene.second.row()).refresh_state
        assert (state.holder, state.failure, scene.provider.requests) == (None, "answer_lost", [])
        with pytest.raises(ProviderUnavailable):  # the dead holder would still have time
            await scene.first.reveal()
        assert scene.provider.requests == []


async def test_a_revocation_that_sends_nothing_leaves_a_holder_its_time(tmp_path: Path) -> None:
    """The revocation takes an expired lease over and gives it back, while the holder may have the answer."""
    async with _scene(tmp_path) as scene:
        row, began_at = await scene.second.row(), scene.second.clock()
        assert await scene.second.tokens.claim_refresh(row, holder=str(uuid4()), lease_seconds=-1)
        with pytest.raises(RevocationUnsupported):
            await scene.second.revocation.delete(HERE, required=True, caller=CALLER)
        state = (await scene.second.row()).refresh_state
        assert (state.holder, state.failure, scene.provider.requests) == (None, "answer_lost", [])
        assert state.retry_at is not None
        assert state.retry_at >= began_at + timedelta(seconds=TAKEOVER_SECONDS)


async def test_a_claim_goes_on_once_the_store_shows_that_it_was_made(tmp_path: Path) -> None:
    """Its answer is lost, and the first read-backs too: nobody else could refresh the token before the lease ends."""
    async with _scene(tmp_path) as scene:
        scene.failures.answers_lost["claim_refresh"] = 1
        scene.failures.refused["read_back"] = 3
        assert (await scene.first.reveal())[1] is True
        assert (scene.provider.refreshes, (await scene.first.row()).refresh_state.generation) == (1, 1)


async def test_a_claim_that_was_not_made_is_the_stores_error(tmp_path: Path) -> None:
    async with _scene(tmp_path) as scene:
        scene.failures.refused |= {"claim_refresh": 1, "read_back": 3}
        with pytest.raises(StoreUnavailable):
            await scene.first.reveal()
        assert (scene.provider.requests, (await scene.first.row()).refresh_state.generation) == ([], 0)
