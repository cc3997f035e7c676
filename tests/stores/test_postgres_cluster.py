"""The PostgreSQL store on two servers: what only a standby has, or does not have yet, is never an answer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import LiteralString

import pytest
from pydantic import SecretStr

from app.config.database_url import database_url_source
from app.errors import StoreError, StoreMisconfigured, StoreUnavailable
from app.stores.postgres.repository import PostgresRepository
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault
from tests.support.oauth.stand_in import oauth_stand_in
from tests.support.refresh import CALLER, replicas
from tests.support.stack.cluster import Cluster, running_cluster
from tests.support.stack.gateway_faults import Faults, writes
from tests.support.stack.pgbouncer import PGBOUNCER, PgBouncer, running_pgbouncer
from tests.support.stack.postgres import Database
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import VAULT_LOGIN, running_api
from tests.support.stores.pausing import pauses, pausing
from tests.support.stores.postgres import connected
from tests.support.stores.stores import token
from tests.support.waiting import eventually_async, once_available

needs_pgbouncer = pytest.mark.skipif(not PGBOUNCER.exists(), reason="PgBouncer is not installed: there is no apt")
_RECOVERY_SECONDS = 30


@pytest.fixture(scope="module")
def cluster(stack_reaper: Reaper) -> Iterator[Cluster]:
    with running_cluster(stack_reaper) as cluster:
        yield cluster


@asynccontextmanager
async def pooled(cluster: Cluster, server: str, reaper: Reaper) -> AsyncIterator[tuple[PostgresRepository, PgBouncer]]:
    """Open a store through a pooler in front of this server, which the URL names before the primary."""
    with running_pgbouncer(server=server, user=VAULT_LOGIN, sessions=2, reaper=reaper) as pooler:
        async with connected(cluster.url(pooler, cluster.primary)) as tokens:
            yield tokens, pooler


_WAITING: LiteralString = "from pg_stat_activity where wait_event = 'SyncRep'"


@asynccontextmanager
async def visible_without_standby(cluster: Cluster) -> AsyncIterator[Database]:
    """Pause the standby, and let the server end every session whose commit waits for it.

    So each commit during the block is visible, and a failover would undo it.
    """

    async def end_sessions(database: Database) -> None:
        while True:
            database.sql(f"select pg_terminate_backend(pid) {_WAITING}")
            await asyncio.sleep(0.02)

    with cluster.standby.paused(), cluster.primary.connect() as watched, cluster.primary.connect() as database:
        # what this test itself changes waits for no standby
        database.sql("set synchronous_commit = local")
        ending = asyncio.create_task(end_sessions(watched))
        try:
            yield database
        finally:
            ending.cancel()


@asynccontextmanager
async def opened(store: str, cluster: Cluster, reaper: Reaper) -> AsyncIterator[tuple[TokenRepository, Faults | None]]:
    """Open the primary's table directly, or through PostgREST with a gateway that injects faults."""
    if store == "postgres":
        async with connected(cluster.url()) as tokens:
            yield tokens, None
        return
    from app.stores.supabase.repository import SupabaseRepository  # noqa: PLC0415  takes seconds

    with running_api(database_uri=cluster.primary.uri("authenticator"), reaper=reaper) as api:
        supabase = await SupabaseRepository.connect(url=api.gateway.url, service_key=SecretStr(api.keys.vault))
        try:
            yield supabase, api.gateway.faults
        finally:
            await supabase.close()


@pytest.mark.parametrize("store", ["postgres", "supabase"])
async def test_a_commit_that_no_standby_has_is_not_a_success(
    cluster: Cluster, stack_reaper: Reaper, store: str
) -> None:
    kept, lost, deleted = token(), token(), token()
    async with opened(store, cluster, stack_reaper) as (tokens, faults), _vault(tokens) as vault:
        assert await tokens.insert(kept) == kept
        assert await tokens.insert(deleted) == deleted
        async with visible_without_standby(cluster) as database:
            for write in (
                lambda: tokens.insert(lost),
                lambda: tokens.replace(kept, replace(kept, access_ciphertext="v1:new", version=2)),
                lambda: vault.delete(deleted.token_id, caller=CALLER),
                lambda: tokens.read_back([kept.id]),
            ):
                if faults is not None:
                    faults.cut_after_commit(times=1, when=writes)
                with pytest.raises(StoreError):
                    await write()
            visible = database.sql("select id::text, version from public.oauth_tokens")
        assert {row["id"]: row["version"] for row in visible if row["id"] in {kept.id, lost.id, deleted.id}} == {
            lost.id: 1,
            kept.id: 2,
        }, "each change is there, and may be lost"


async def test_an_erasure_that_no_standby_has_is_not_a_success(cluster: Cluster) -> None:
    """The first one loses its answer, and the second one finds nothing to delete."""
    row = token()
    async with connected(cluster.url()) as tokens, _vault(tokens) as vault:
        assert await tokens.insert(row) == row
        async with visible_without_standby(cluster):
            for _ in range(2):
                with pytest.raises(StoreError):
                    await vault.delete_for_user(row.token_id.user_id, caller=CALLER)
        assert (await vault.delete_for_user(row.token_id.user_id, caller=CALLER)).deleted == 0


async def test_no_token_is_spent_on_a_lease_that_no_standby_has(cluster: Cluster) -> None:
    """After a failover nobody would hold the lease, and another replica would spend the token again."""
    calls = Counter[str]()
    with oauth_stand_in() as provider:
        async with (
            connected(cluster.url()) as tokens,
            replicas(pausing(tokens, pauses([0]), calls=calls), provider) as [replica],
        ):
            await replica.store(refresh_token=provider.seed())
            replica.clock.passed += timedelta(hours=2)
            async with visible_without_standby(cluster):
                revealing = asyncio.create_task(replica.reveal())
                await eventually_async(lambda: calls["read_back"] > 1 or revealing.done())
                assert (await replica.row()).refresh_state.generation == 1, "the lease is in the row"
                assert provider.requests == []
            assert (await revealing)[1] is True
            assert (provider.refreshes, provider.reuses) == (1, 0)


async def test_writes_that_time_out_leave_no_session_behind(cluster: Cluster) -> None:
    """The server does not notice that its client has left while a commit waits for the standby."""
    async with connected(cluster.url()) as tokens:
        with cluster.standby.paused(), cluster.primary.connect() as database:
            writes = [asyncio.ensure_future(tokens.insert(token())) for _ in range(4)]
            await eventually_async(lambda: _waiting(database) == len(writes))
            for write in writes:
                write.cancel()
            await eventually_async(lambda: _waiting(database) == 0)
            await tokens.get(token().token_id)


def _waiting(database: Database) -> int:
    return len(database.sql(f"select {_WAITING}"))


@asynccontextmanager
async def _vault(tokens: TokenRepository) -> AsyncIterator[TokenVault]:
    with oauth_stand_in() as provider:
        async with replicas(tokens, provider) as [replica]:
            yield replica.vault


async def test_a_new_password_needs_no_restart(cluster: Cluster, tmp_path: Path) -> None:
    """The open connection goes on after the change, and a new one reads the file again."""
    file = tmp_path / "url"
    file.touch(mode=0o600)
    file.write_text(cluster.url().replace(VAULT_LOGIN, "rotated:the-old-one"))
    cluster.primary.require_password("rotated")
    with cluster.primary.connect() as database:
        database.sql("create role rotated login bypassrls password 'the-old-one' in role token_vault")
        tokens = await PostgresRepository.connect(url=database_url_source(None, file), pool_size=1)
        try:
            await tokens.check()
            database.sql("alter role rotated password 'the-new-one'")
            await tokens.check()
            database.sql("select pg_terminate_backend(pid, 10000) from pg_stat_activity where usename = 'rotated'")
            await _require_refused_login(tokens)
            file.write_text(file.read_text().replace("old", "new"))
            await tokens.check()
        finally:
            await tokens.close()


async def _require_refused_login(tokens: PostgresRepository) -> None:
    with pytest.raises(StoreMisconfigured, match="refuses the user") as caught:
        await once_available(tokens.check)  # the first call may find the connection that was just ended
    assert "the-old-one" not in repr(caught.value)


@needs_pgbouncer
async def test_a_pooler_that_now_leads_to_a_replica_is_left(cluster: Cluster, stack_reaper: Reaper) -> None:
    row = token()
    async with pooled(cluster, cluster.primary.place, stack_reaper) as (tokens, pooler):
        assert await tokens.insert(row) == row
        pooler.lead_to(cluster.standby.place)
        with pytest.raises(StoreUnavailable, match="replica"):
            await _read_until_refused(tokens, row)
        assert await once_available(partial(tokens.get, row.token_id), within_seconds=_RECOVERY_SECONDS) == row


async def _read_until_refused(tokens: PostgresRepository, row: StoredToken) -> None:
    """Read until the pooler has changed over; the refusal ends it."""
    async with asyncio.timeout(_RECOVERY_SECONDS):
        while True:
            assert await tokens.get(row.token_id) == row


@needs_pgbouncer
async def test_a_standby_that_was_promoted_behind_a_pooler_is_used(cluster: Cluster, stack_reaper: Reaper) -> None:
    """PgBouncer goes on to tell new clients what the server told it when it was a standby."""
    row = token()
    async with pooled(cluster, cluster.standby.place, stack_reaper) as (tokens, _):
        assert await tokens.insert(row) == row
        cluster.primary.kill()
        cluster.standby.promote()
        assert await once_available(partial(tokens.get, row.token_id), within_seconds=_RECOVERY_SECONDS) == row
