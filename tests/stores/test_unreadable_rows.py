"""A row that does not decode is returned as such, beside every other row, and can be replaced and deleted."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

from app.errors import StoreMisconfigured
from app.tokens.models import Rewrap, StoredToken, TokenId, UnreadableRow
from app.tokens.repository import TokenRepository
from tests.support.stores.stores import SqliteStore, Store, sqlite_connection, token
from tests.support.stores.unreadable import damage, damages_of


async def _pair(tokens: TokenRepository) -> tuple[StoredToken, StoredToken]:
    """Insert two tokens of one user, the second to be damaged."""
    user = str(uuid4())
    good, bad = token(TokenId(user, "canvas")), token(TokenId(user, "google"), metadata={"never": "quoted"})
    await tokens.insert(good)
    await tokens.insert(bad)
    return good, bad


async def test_reads_return_it_beside_the_others(store: Store, tokens: TokenRepository) -> None:
    for name, (column, value) in damages_of(store).items():
        good, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", column, value)
        version = value if column == "version" else bad.version
        found = await tokens.get(bad.token_id)
        assert isinstance(found, UnreadableRow), name
        assert (found.id, found.token_id, found.version) == (bad.id, bad.token_id, version), name
        assert "quoted" not in repr(found)
        assert await tokens.list_for_user(good.token_id.user_id) == [good, found], name
        both = [good.token_id, bad.token_id]
        assert await tokens.get_many(both) == {good.token_id: good, bad.token_id: found}, name
        many = await asyncio.gather(*(tokens.get(one) for one in both * 30))  # in shared requests
        assert many == [good, found] * 30, name
        assert await tokens.read_back([good.id, bad.id]) == {good.id: good, bad.id: found}, name
        pages = [await tokens.page(scheme, after=None, limit=100) for scheme in await tokens.schemes()]
        assert [row for page in pages for row in page if row.token_id == bad.token_id] == [found], name
        await tokens.check()


async def test_it_can_be_replaced(store: Store, tokens: TokenRepository) -> None:
    for name, (column, value) in damages_of(store).items():
        _, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", column, value)
        found = await tokens.get(bad.token_id)
        assert found is not None
        newer = token(bad.token_id, id=found.id, version=2, access_ciphertext="v1:newer", encryption_scheme="local:v2")
        assert await tokens.replace(replace(found, version=7), newer) is None, name
        assert await tokens.replace(found, newer) == newer, name
        assert await tokens.get(bad.token_id) == newer, name


async def test_it_can_be_deleted_at_its_version(store: Store, tokens: TokenRepository) -> None:
    for name, (column, value) in damages_of(store).items():
        good, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", column, value)
        found = await tokens.get(bad.token_id)
        assert found is not None
        assert not await tokens.delete(replace(found, version=7)), name
        assert await tokens.delete(found), name
        assert await tokens.list_for_user(good.token_id.user_id) == [good], name


async def test_it_is_deleted_with_the_others_of_its_user(store: Store, tokens: TokenRepository) -> None:
    for name, (column, value) in damages_of(store).items():
        good, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", column, value)
        rows = await tokens.list_for_user(good.token_id.user_id)
        assert (await tokens.delete_many(rows)).deleted == 2, name


async def test_a_scheme_that_is_not_utf8_hides_no_count(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    async with store.open() as tokens:
        _, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", "encryption_scheme", b"local:\xff")
        assert set(await tokens.schemes()) == {"local:v1", "local:\\xff"}
        assert {(line.scheme, line.rows) for line in await tokens.census()} == {("local:v1", 1), ("local:\\xff", 1)}
        damage(store, bad.token_id.user_id, "google", "encryption_scheme", None)
        damage(store, bad.token_id.user_id, "google", "access_token", b"\xff")
        assert {line.materials for line in await tokens.census()} == {(), ("unknown",)}


async def test_a_write_that_sqlite_refuses_fails_no_other_write(tmp_path: Path) -> None:
    """SQLite's own JSON parser refuses what was written between the read and the rewrap."""
    store = SqliteStore(tmp_path / "vault.db")
    async with store.open() as tokens:
        good, bad = await _pair(tokens)
        damage(store, bad.token_id.user_id, "google", "metadata", "{")
        other = sqlite_connection(store.path)
        other.execute("BEGIN IMMEDIATE")  # so that all share one commit
        first = asyncio.ensure_future(tokens.insert(token()))
        await asyncio.sleep(0.1)
        rewrap = asyncio.ensure_future(tokens.replace_ciphertexts([Rewrap(bad, replace(bad, access_ciphertext="x"))]))
        huge = asyncio.ensure_future(tokens.insert(token(version=2**63)))
        change = asyncio.ensure_future(tokens.replace(good, replace(good, version=2, email="a@example.org")))
        await asyncio.sleep(0.1)
        other.execute("ROLLBACK")
        outcomes = await asyncio.gather(first, rewrap, huge, change, return_exceptions=True)
        assert [type(one) for one in outcomes] == [StoredToken, StoreMisconfigured, StoreMisconfigured, StoredToken]
