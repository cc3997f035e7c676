"""The PostgreSQL store's connections: lost answers, limits, cancellation, replicas and hosts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from psycopg import sql

from app.config.database_url import database_url_source
from app.errors import StoreMisconfigured, StoreTimeout, StoreUnavailable
from app.stores.postgres.errors import FULL
from app.stores.postgres.repository import PostgresRepository
from app.tokens.models import StoredToken
from tests.support.sizes import size
from tests.support.stack.relay import Relay, running_relay
from tests.support.stack.supabase import VAULT_LOGIN, SupabaseStack
from tests.support.stores.postgres import cancel_many, connected
from tests.support.stores.stores import PostgresStore, insert_all, token
from tests.support.waiting import eventually, once_available

_SESSIONS = "select count(*) as n from pg_stat_activity where usename = %s"


@pytest.fixture
def own_login(supabase: SupabaseStack) -> Iterator[str]:
    """A login role of this test alone: a service of other tests may have sessions of the usual one."""
    name = f"vault_login_{uuid4().hex[:8]}"
    connection = supabase.database.connection
    connection.execute(sql.SQL("create role {} login bypassrls in role token_vault").format(sql.Identifier(name)))
    yield name
    connection.execute(sql.SQL("drop role {}").format(sql.Identifier(name)))


@asynccontextmanager
async def relayed(supabase: SupabaseStack) -> AsyncIterator[tuple[PostgresRepository, Relay]]:
    async with running_relay(supabase.postgres.socket) as relay:
        place = f"127.0.0.1:{relay.port}/{supabase.database.name}"
        async with connected(f"postgresql://{VAULT_LOGIN}@{place}?sslmode=disable") as tokens:
            await tokens.check()
            yield tokens, relay


async def test_a_write_whose_answer_is_lost_is_read_back(supabase: SupabaseStack) -> None:
    row = token()
    changed = replace(row, access_ciphertext="v1:changed", version=2)
    async with relayed(supabase) as (tokens, relay):
        relay.lose_next_answer()
        assert await tokens.insert(row) == row
        relay.lose_next_answer()
        assert await tokens.replace(row, changed) == changed
        assert await tokens.get(row.token_id) == changed


async def test_a_deletion_whose_answer_is_lost_raises(supabase: SupabaseStack) -> None:
    row = token()
    async with relayed(supabase) as (tokens, relay):
        await tokens.insert(row)
        relay.lose_next_answer()
        with pytest.raises(StoreUnavailable):
            await tokens.delete(row)


async def test_a_write_that_another_write_followed_stays_unknown(supabase: SupabaseStack) -> None:
    """The row that is read back is another writer's, so it proves nothing."""
    row = token()
    async with relayed(supabase) as (tokens, relay):
        await tokens.insert(row)
        supabase.sql(
            "create function pg_temp_steal() returns trigger language plpgsql as "
            "$$ begin new.access_token := 'v1:another'; new.version := 9; return new; end $$"
        )
        supabase.sql(
            "create trigger steal before update on public.oauth_tokens for each row execute function pg_temp_steal()"
        )
        try:
            relay.lose_next_answer()
            with pytest.raises(StoreUnavailable):
                await tokens.replace(row, replace(row, access_ciphertext="v1:mine", version=2))
        finally:
            supabase.sql("drop function pg_temp_steal cascade")


async def test_a_full_pool_refuses_quickly(supabase: SupabaseStack) -> None:
    row = token()
    async with connected(supabase.login_url, pool_size=2) as tokens:
        await tokens.insert(row)
        with supabase.database.connection.transaction(force_rollback=True):
            supabase.sql("select 1 from public.oauth_tokens for update")
            drafts = [replace(row, access_ciphertext=f"v1:{n}", version=2) for n in range(6)]
            calls = [asyncio.ensure_future(tokens.replace(row, one)) for one in drafts]
            refused: set[asyncio.Future[StoredToken | None]] = set()
            while len(refused) < 4:
                done, _ = await asyncio.wait(set(calls) - refused, return_when=asyncio.FIRST_COMPLETED, timeout=30)
                assert done
                refused |= done
            assert {str(call.exception()) for call in refused} == {FULL}
        assert len([call for call in calls if call not in refused and await call is not None]) == 1


async def test_a_statement_that_the_server_ends_is_a_time_out(supabase: SupabaseStack) -> None:
    """`statement_timeout`, which the vault sets to three seconds, ends a statement as this does."""
    row = token()
    async with connected(supabase.login_url) as tokens:
        await tokens.insert(row)
        assert (await tokens.server()).has_timeout
        with supabase.database.connection.transaction(force_rollback=True):
            supabase.sql("select 1 from public.oauth_tokens for update")
            write = asyncio.ensure_future(tokens.replace(row, replace(row, access_ciphertext="v1:b", version=2)))
            while not write.done():
                supabase.sql("select pg_cancel_backend(pid) from pg_stat_activity where wait_event_type = 'Lock'")
                await asyncio.sleep(0.02)
            with pytest.raises(StoreTimeout):
                await write
        assert await tokens.get(row.token_id) == row


async def test_cancelled_reads_and_writes_leave_the_pool_intact(supabase: SupabaseStack, own_login: str) -> None:
    rows = [token() for _ in range(8)]
    async with connected(supabase.postgres.uri(supabase.database.name, user=own_login)) as tokens:
        await insert_all(tokens, rows)
        await cancel_many(tokens, size(500, 10_000))
        for row in rows:
            assert await once_available(partial(tokens.get, row.token_id)) == row
        eventually(lambda: supabase.sql(_SESSIONS, [own_login])[0]["n"] <= 4)  # a session ends a moment later
    eventually(lambda: supabase.sql(_SESSIONS, [own_login]) == [{"n": 0}])


async def test_a_read_only_database_is_unavailable_not_empty(supabase: SupabaseStack) -> None:
    row, database = token(), supabase.database.name
    async with PostgresStore(supabase).open() as tokens:
        await tokens.insert(row)
    supabase.database.connection.execute(f"alter database {database} set default_transaction_read_only = on".encode())
    try:
        async with connected(supabase.login_url) as tokens:
            with pytest.raises(StoreUnavailable, match="takes writes"):
                await tokens.get(token().token_id)
    finally:
        supabase.database.connection.execute(f"alter database {database} reset default_transaction_read_only".encode())


async def test_hosts_that_refuse_or_do_not_answer_are_passed_over(supabase: SupabaseStack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:1,127.0.0.1:{silent.getsockname()[1]}"
        await _require_reached(supabase, hosts)


async def _require_reached(supabase: SupabaseStack, others: str) -> None:
    async with running_relay(supabase.postgres.socket) as relay:
        hosts = f"{others},127.0.0.1:{relay.port}"
        url = f"postgresql://{VAULT_LOGIN}@{hosts}/{supabase.database.name}?sslmode=disable"
        async with connected(url) as tokens:
            await tokens.check()


async def test_a_server_without_tls_is_refused(supabase: SupabaseStack) -> None:
    async with running_relay(supabase.postgres.socket) as relay:
        url = f"postgresql://{VAULT_LOGIN}@127.0.0.1:{relay.port}/{supabase.database.name}"
        async with connected(url) as tokens:
            with pytest.raises(StoreMisconfigured, match="TLS"):
                await tokens.check()


async def test_the_url_file_is_read_for_each_new_connection(supabase: SupabaseStack, tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.touch(mode=0o600)
    file.write_text(supabase.postgres.uri(supabase.database.name, user="nobody_has_this_name"))
    tokens = await PostgresRepository.connect(url=database_url_source(None, file), pool_size=1)
    try:
        with pytest.raises(StoreMisconfigured, match="refuses the user"):
            await tokens.check()
        file.write_text(supabase.login_url)
        await tokens.check()
    finally:
        await tokens.close()


async def test_a_role_without_the_vaults_privileges_is_named(supabase: SupabaseStack) -> None:
    async with connected(supabase.postgres.uri(supabase.database.name, user="authenticator")) as tokens:
        with pytest.raises(StoreMisconfigured, match="token_vault"):
            await tokens.check()


async def test_sessions_that_the_server_ends_are_replaced(supabase: SupabaseStack, own_login: str) -> None:
    row = token()
    async with connected(supabase.postgres.uri(supabase.database.name, user=own_login)) as tokens:
        await tokens.insert(row)
        supabase.sql("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [own_login])
        eventually(lambda: supabase.sql(_SESSIONS, [own_login]) == [{"n": 0}])
        async with asyncio.timeout(30):
            while True:
                with suppress(StoreUnavailable):  # this process may not have noticed yet
                    assert await tokens.get(row.token_id) == row
                    return
