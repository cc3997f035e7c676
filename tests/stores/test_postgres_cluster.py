"""The PostgreSQL store on two servers: what only a standby has, or does not have yet, is never an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from app.config.database_url import database_url_source
from app.errors import StoreMisconfigured, StoreUnavailable
from app.stores.postgres.repository import PostgresRepository
from app.tokens.models import StoredToken
from tests.support.stack.cluster import Cluster, running_cluster
from tests.support.stack.pgbouncer import PGBOUNCER, PgBouncer, running_pgbouncer
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import VAULT_LOGIN
from tests.support.stores.postgres import connected
from tests.support.stores.stores import token
from tests.support.waiting import once_available

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


async def test_a_commit_that_no_standby_has_is_not_a_success(cluster: Cluster) -> None:
    """The server ends a session whose commit waits for the standby: the row is there, and may be lost."""
    row = token()
    with cluster.standby.paused(), cluster.primary.connect() as database:
        async with connected(cluster.url()) as tokens:
            write = asyncio.ensure_future(tokens.insert(row))
            while not write.done():
                database.sql("select pg_terminate_backend(pid) from pg_stat_activity where wait_event = 'SyncRep'")
                await asyncio.sleep(0.02)
            with pytest.raises(StoreUnavailable):
                await write
        assert database.sql("select access_token from public.oauth_tokens where id = %s", [row.id]) != []


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
