"""Outages of the store, of KMS and of the audit trail around a refresh."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest
from pydantic import SecretStr

from app.errors import AuditUnavailable, KeyDenied, KeyUnavailable, StoreUnavailable, VaultError
from app.refresh.authorization import Authorization
from app.refresh.lease import TAKEOVER_SECONDS, lease_clock
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, HERE, Replica, replicas
from tests.support.sizes import SOAK
from tests.support.stack.kms import Kms
from tests.support.stack.kms_faults import Policy
from tests.support.stores.failing import Failures, failing
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually_async, once_available

HOUR: Final = timedelta(hours=1)
REPLICAS: Final = 8
# seconds of the outage, and the lease's, which has a lower bound of 30
OUTAGES: Final = [(30, 180), (90, 180), (90, 30)] if SOAK else [(1, 180), (1, 30)]


@dataclass(slots=True)
class Scene:
    store: SqliteStore
    failures: Failures
    provider: OAuthStandIn
    replicas: list[Replica]


@asynccontextmanager
async def _scene(folder: Path, **options: Any) -> AsyncIterator[Scene]:
    """Run replicas with one store, which a test may take down, and a token that has expired."""
    store, failures = SqliteStore(folder / "vault.db"), Failures()
    async with store.open() as tokens:
        with oauth_stand_in() as provider:
            async with replicas(failing(tokens, failures), provider, **options) as several:
                first = several[0]
                await once_available(lambda: first.store(refresh_token=provider.seed(), expires_at=first.clock()))
                yield Scene(store, failures, provider, several)


async def test_an_answer_outlasts_an_outage_in_which_its_row_does_not_decode(tmp_path: Path) -> None:
    async with _scene(tmp_path) as scene:
        release, [replica] = threading.Event(), scene.replicas
        before = await replica.row()
        scene.provider.script(Answer(commits=True, hold=release))
        reading = asyncio.create_task(replica.reveal())
        await eventually_async(lambda: scene.provider.refreshes == 1)
        scene.store.update_raw(before.id, scopes="another program's")
        scene.failures.refused["settle_refresh"] = 3
        release.set()
        await asyncio.gather(reading, return_exceptions=True)  # it cannot read its row either
        scene.store.update_raw(before.id, scopes="[]")
        assert scene.provider.accepts(await replica.refresh_token())


@pytest.mark.parametrize(("seconds", "lease_seconds"), OUTAGES)
async def test_a_token_works_after_an_outage_that_begins_with_the_answer(
    tmp_path: Path, seconds: float, lease_seconds: int
) -> None:
    """Single-use tokens, whose second use ends the grant, while all replicas go on reading."""
    release = threading.Event()
    options = {"count": REPLICAS, "takeover_seconds": TAKEOVER_SECONDS, "lease_seconds": lease_seconds}
    async with _scene(tmp_path, **options) as scene:
        before, provider = await scene.replicas[0].row(), scene.provider
        provider.script(Answer(commits=True, hold=release))
        first = asyncio.create_task(scene.replicas[0].reveal())
        await eventually_async(lambda: len(provider.requests) == 1)
        scene.failures.down = True
        over = asyncio.Event()
        readers = [asyncio.create_task(_read_until(over, replica)) for replica in scene.replicas]
        release.set()
        await asyncio.sleep(seconds)
        if not SOAK and lease_seconds == 30:  # time passes, by the store's clock
            scene.store.update_raw(before.id, refresh_leased_until=0)
        scene.failures.down = False
        await asyncio.gather(first, return_exceptions=True)  # its caller may wait for a minute
        access, _ = await once_available(scene.replicas[0].reveal)
        over.set()
        assert sum(await asyncio.gather(*readers)) > REPLICAS
        assert {await once_available(replica.reveal) for replica in scene.replicas} == {(access, True)}
        assert (provider.refreshes, provider.reuses) == (1, 0)
        for replica in scene.replicas:
            replica.clock.passed += HOUR
        assert (await scene.replicas[1].reveal())[0] != access
        assert (provider.refreshes, provider.reuses) == (2, 0)


@pytest.mark.parametrize("failing_part", ["the read", "the claim", "the audit trail"])
async def test_no_request_is_sent_if_anything_before_it_fails(tmp_path: Path, failing_part: str) -> None:
    async with _scene(tmp_path) as scene:
        [replica], failures, provider = scene.replicas, scene.failures, scene.provider
        row = await replica.row()
        if failing_part == "the read":
            failures.refused["get"] = 1
        elif failing_part == "the claim":
            failures.refused["claim_refresh"] = 1
        else:
            replica.trail.refuses = True
        with pytest.raises((StoreUnavailable, AuditUnavailable)):
            await replica.reveal()
        assert provider.requests == []
        replica.trail.refuses = False
        scene.store.update_raw(row.id, refresh_leased_until=0)  # time passes, by the store's clock
        assert (await replica.reveal())[0] != "first"
        assert (provider.refreshes, provider.reuses) == (1, 0)


@pytest.mark.parametrize("fault", ["kms:Decrypt", "kms:GenerateDataKey", "outage"])
async def test_no_request_is_sent_if_kms_fails(tmp_path: Path, kms: Kms, fault: str) -> None:
    """Neither if the refresh token cannot be decrypted, nor if there is no key for its successor."""
    store, settings = SqliteStore(tmp_path / "vault.db"), kms.environment()
    async with store.open() as tokens:
        with oauth_stand_in() as provider:
            async with replicas(tokens, provider, encryption_settings=settings) as [before]:
                await before.store(refresh_token=provider.seed(), expires_at=before.clock())
            # another process, without a data key
            async with replicas(tokens, provider, encryption_settings=settings) as [replica]:
                row = await replica.row()
                if fault == "outage":
                    kms.faults.down()
                else:
                    kms.faults.policy = Policy(frozenset({"kms:Decrypt", "kms:GenerateDataKey"}) - {fault})
                with pytest.raises((KeyDenied, KeyUnavailable)):
                    await replica.reveal()
                assert (provider.requests, await replica.row()) == ([], row)
                kms.faults.clear()
            async with replicas(tokens, provider, encryption_settings=settings) as [replica]:
                assert (await replica.reveal())[0] != "first"
            assert (provider.refreshes, provider.reuses) == (1, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the monotonic clock counts it")
def test_the_clock_of_a_lease_counts_the_sleep_of_the_machine() -> None:
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= lease_clock() <= time.clock_gettime(time.CLOCK_BOOTTIME)


async def _read_until(over: asyncio.Event, replica: Replica) -> int:
    """Read all the time; return how many reads failed, which every caller may repeat."""
    failed = 0
    while not over.is_set():
        try:
            await asyncio.wait_for(replica.reveal(), 30)
        except VaultError as error:
            if not error.retryable:
                raise
            failed += 1
        await asyncio.sleep(0.1)
    return failed


async def test_no_code_is_spent_while_the_store_is_down(tmp_path: Path) -> None:
    failures = Failures(down=True)
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        with oauth_stand_in() as provider:
            given = Authorization(code=SecretStr(provider.seed_code()), redirect_uri="https://api.example/cb")
            async with replicas(failing(tokens, failures), provider) as [replica]:
                with pytest.raises(StoreUnavailable):
                    await replica.exchange.exchange(HERE, given, caller=CALLER)
                assert provider.requests == []
                failures.down = False
                assert (await replica.exchange.exchange(HERE, given, caller=CALLER)).created
