"""The PostgreSQL store through PgBouncer in transaction mode. Skipped where PgBouncer is not installed, without apt."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from app.errors import StoreMisconfigured
from app.tokens.models import StoredToken
from tests.support.process.certificates import new_authority
from tests.support.sizes import size
from tests.support.stack.pgbouncer import PGBOUNCER, running_pgbouncer
from tests.support.stack.postgres import Postgres
from tests.support.stack.reaper import Reaper
from tests.support.stack.supabase import VAULT_LOGIN, SupabaseStack
from tests.support.stores.postgres import cancel_many, connected
from tests.support.stores.stores import insert_all, token
from tests.support.waiting import once_available

pytestmark = pytest.mark.skipif(not PGBOUNCER.exists(), reason="PgBouncer is not installed, because there is no apt")
_SESSIONS = 3


@pytest.fixture(scope="module")
def port(supabase_stack: SupabaseStack, stack_reaper: Reaper) -> Iterator[int]:
    """A pooler with fewer sessions than the vault's pool has connections."""
    server = f"host={supabase_stack.postgres.socket.parent}"
    with running_pgbouncer(server=server, user=VAULT_LOGIN, sessions=_SESSIONS, reaper=stack_reaper) as pooler:
        yield pooler.port


def _url(port: int, supabase: SupabaseStack, options: str = "sslmode=disable") -> str:
    return f"postgresql://any@127.0.0.1:{port}/{supabase.database.name}?{options}"


async def test_concurrent_calls_through_few_sessions_succeed(port: int, supabase: SupabaseStack) -> None:
    rows = [token() for _ in range(40)]
    async with connected(_url(port, supabase), pool_size=10) as tokens:
        await tokens.check()
        assert not (await tokens.server()).direct
        await insert_all(tokens, rows)
        changed = [replace(row, access_ciphertext=f"v1:{at}", version=2) for at, row in enumerate(rows)]
        for at in range(0, len(rows), 8):
            eight = slice(at, at + 8)
            assert await asyncio.gather(*map(tokens.replace, rows[eight], changed[eight])) == changed[eight]
        assert await asyncio.gather(*(tokens.get(row.token_id) for row in rows)) == changed
        assert [(line.scheme, line.rows) for line in await tokens.census()] == [("local:v1", 40)]
        assert (await tokens.delete_many(changed)).deleted == 40


async def test_cancelled_calls_through_a_pooler_leave_the_pool_intact(port: int, supabase: SupabaseStack) -> None:
    rows: list[StoredToken] = [token() for _ in range(8)]
    async with connected(_url(port, supabase)) as tokens:
        await insert_all(tokens, rows)
        await cancel_many(tokens, size(500, 10_000))
        for row in rows:
            assert await once_available(partial(tokens.get, row.token_id)) == row


async def test_the_servers_certificate_and_name_are_verified(
    postgres: Postgres, supabase: SupabaseStack, stack_reaper: Reaper, tmp_path: Path
) -> None:
    authority, other = (new_authority(tmp_path, name) for name in ("trusted", "other"))
    certificate = authority.issue(tmp_path, "database")
    server = f"host={postgres.socket.parent}"
    with running_pgbouncer(
        server=server, user=VAULT_LOGIN, sessions=1, reaper=stack_reaper, certificate=certificate
    ) as pooler:
        async with connected(_url(pooler.port, supabase, f"sslrootcert={authority.file}")) as tokens:
            await tokens.check()
        for host, root in (("127.0.0.1", other.file), ("localhost", authority.file)):
            url = _url(pooler.port, supabase, f"sslrootcert={root}").replace("127.0.0.1", host)
            async with connected(url) as tokens:
                with pytest.raises(StoreMisconfigured, match="certificate"):
                    await tokens.check()
