"""A row id that is not UTF-8, as a program that writes the SQLite file can leave it, stops nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import pytest
from pydantic import SecretStr

from app.errors import StoreMisconfigured, TokenNotFound
from app.rewrap.sweep import SweepPlan
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, TokenId, TokenInput, UnreadableRow
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault
from app.tokens.verified_census import verified_census
from tests.support.rewrap.stored_rows import local_encryption
from tests.support.rewrap.sweeps import Observed, sweep
from tests.support.stores.stores import SqliteStore, sqlite_connection
from tests.support.stores.unreadable import damage

T = TypeVar("T")
USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS, GOOGLE = TokenId(USER, "canvas"), TokenId(USER, "google")
CALLER = Caller("test")
GIVEN = TokenInput(access_token=SecretStr("secret"))
BOUND_SECONDS = 120.0
SHOWN = "\\xff"


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    return SqliteStore(tmp_path / "vault.db")


@pytest.fixture
async def tokens(store: SqliteStore) -> AsyncIterator[TokenRepository]:
    """A repository with the tokens of one user; the row id of Canvas is the byte FF, that of Apple is its display."""
    async with store.open() as repository:
        vault = _vault(repository)
        for token_id in (CANVAS, GOOGLE, TokenId(USER, "apple")):
            await vault.store(token_id, GIVEN, caller=CALLER)
        damage(store, USER, "canvas", "id", b"\xff")
        damage(store, USER, "apple", "id", SHOWN)
        yield repository


def _vault(tokens: TokenRepository) -> TokenVault:
    cipher, events = TokenCipher(encryption=local_encryption(1)), TokenEvents(audit=NoAuditTrail())
    return TokenVault(tokens=tokens, cipher=cipher, events=events)


async def _bounded(call: Awaitable[T]) -> T:
    async with asyncio.timeout(BOUND_SECONDS):
        return await call


async def test_the_erasure_of_its_user_deletes_every_row(store: SqliteStore, tokens: TokenRepository) -> None:
    assert (await _vault(tokens).delete_for_user(USER, caller=CALLER)).deleted == 3
    assert store.rows() == []


async def test_a_delete_takes_its_row_and_no_other(tokens: TokenRepository) -> None:
    await _vault(tokens).delete(CANVAS, caller=CALLER)
    assert [row.token_id.provider for row in await tokens.list_for_user(USER)] == ["apple", "google"]


async def test_a_store_replaces_it_under_a_new_id(tokens: TokenRepository) -> None:
    vault = _vault(tokens)
    stored = await vault.store(CANVAS, GIVEN, caller=CALLER)
    assert (stored.created, str(UUID(stored.token.id))) == (False, stored.token.id)
    assert (await vault.reveal(CANVAS, caller=CALLER)).access_token.get_secret_value() == "secret"
    assert len(await tokens.list_for_user(USER)) == 3


async def test_a_page_after_it_is_the_end(tokens: TokenRepository) -> None:
    [scheme] = await tokens.schemes()
    first = await tokens.page(scheme, after=None, limit=100)
    assert len(first) == 3
    assert isinstance(first[-1], UnreadableRow)
    assert await tokens.page(scheme, after=first[-1].id, limit=100) == []


async def test_a_sweep_ends_and_names_it_in_text(tokens: TokenRepository) -> None:
    observed = Observed()
    report = await _bounded(sweep(tokens, local_encryption(2), observed=observed, plan=SweepPlan()).run())
    assert (report.rewrapped, report.unreadable, report.stopped) == (2, {"store_misconfigured": 1}, None)
    [named] = observed.unreadable_ids
    assert named.isascii()


async def test_a_verified_census_counts_each_row_once(tokens: TokenRepository) -> None:
    lines = await _bounded(verified_census(tokens))
    assert sum(line.rows for line in lines) == 3


async def test_an_erasure_ends_when_the_store_keeps_a_row(store: SqliteStore, tokens: TokenRepository) -> None:
    connection = sqlite_connection(store.path)
    connection.execute(
        "CREATE TRIGGER keep BEFORE DELETE ON oauth_tokens WHEN OLD.provider = 'google' BEGIN SELECT RAISE(IGNORE); END"
    )
    with pytest.raises(StoreMisconfigured, match="keeps rows"):
        await _vault(tokens).delete_for_user(USER, caller=CALLER)
    assert [row["provider"] for row in store.rows()] == ["google"]
    connection.execute("DROP TRIGGER keep")
    connection.close()
    assert (await _vault(tokens).delete_for_user(USER, caller=CALLER)).deleted == 1
    with pytest.raises(TokenNotFound):
        await _vault(tokens).delete(GOOGLE, caller=CALLER)
