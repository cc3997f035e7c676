"""A scheme that the vault does not write, as a program with write access can leave it, is counted and never walked."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import StoreMisconfigured
from app.rewrap.sweep import SweepPlan
from app.stores.supabase.repository import SupabaseRepository
from app.tokens.census import Census
from app.tokens.models import TokenId, UnreadableRow
from app.tokens.verified_census import verified_census
from tests.support.rewrap.stored_rows import local_encryption
from tests.support.rewrap.sweeps import counts, sweep
from tests.support.stores.stores import Store, raw_row, token

LONG = "x" * 70_000


async def test_an_overlong_scheme_is_an_unreadable_row_that_is_replaced(store: Store) -> None:
    user = str(uuid4())
    async with store.open() as tokens:
        store.insert_raw(**raw_row(user_id=user, provider="canvas", encryption_scheme=LONG))
        [found] = await tokens.list_for_user(user)
        assert isinstance(found, UnreadableRow)
        newer = token(TokenId(user, "canvas"), id=found.id, version=found.version + 1)
        assert await tokens.replace(found, newer) == newer


async def test_strange_schemes_stop_neither_a_sweep_nor_a_count(store: Store) -> None:
    async with store.open() as tokens:
        for scheme in (LONG, "kms:" + LONG, "somebody's own", "a", "b"):
            store.insert_raw(**raw_row(user_id=str(uuid4()), encryption_scheme=scheme))
        report = await sweep(tokens, local_encryption(1), plan=SweepPlan(retry_seconds=1)).run()
        assert (counts(report)["unreadable"], report.stopped) == (5, None)
        census = Census.of(await verified_census(tokens), primary_scheme=None)
        assert (census.rows, census.unknown, len(census.lines)) == (5, 5, 1)


async def test_a_request_too_long_to_send_is_an_error_that_is_not_retried() -> None:
    tokens = await SupabaseRepository.connect(url="http://127.0.0.1:9", service_key=SecretStr("sb_secret_x"))
    row = token(encryption_scheme=LONG)
    for call in (tokens.page(LONG, after=None, limit=1), tokens.replace(row, replace(row, version=2))):
        with pytest.raises(StoreMisconfigured, match="too long"):
            await call
    await tokens.close()
