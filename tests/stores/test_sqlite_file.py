"""The SQLite store's file: moved, locked, incomplete or oddly named."""

from __future__ import annotations

import asyncio
from pathlib import Path

import apsw
import pytest

from app.errors import StoreMisconfigured, StoreTimeout, StoreUnavailable, WritesUnavailable
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.models import TokenId
from tests.support.audit.trails import file_size_limit
from tests.support.stores.stores import SqliteStore, sqlite_connection, token
from tests.support.waiting import eventually_async, once_available

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"


async def test_a_moved_or_replaced_file_takes_no_write(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    async with SqliteStore(path).open() as tokens:
        await tokens.insert(token())
        path.rename(tmp_path / "moved.db")
        with pytest.raises(StoreMisconfigured, match="moved or replaced"):
            await tokens.insert(token())
        with pytest.raises(StoreMisconfigured):
            await tokens.check()
        path.write_bytes(b"")
        with pytest.raises(StoreMisconfigured, match="moved or replaced"):
            await tokens.insert(token())


@pytest.mark.parametrize("name", [":memory:", "file:vault.db?mode=memory", ""])
async def test_no_file_name_makes_a_database_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    row = token()
    try:
        async with SqliteStore(Path(name)).open() as tokens:
            await tokens.insert(row)
        async with SqliteStore(Path(name)).open() as tokens:
            assert await tokens.get(row.token_id) == row
    except StoreMisconfigured:
        assert name == "", "only the empty name, a directory, is refused"


async def test_a_cancelled_write_does_not_happen_later(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    store = SqliteStore(path)
    async with store.open() as tokens:
        other = sqlite_connection(path)
        other.execute("BEGIN IMMEDIATE")
        first = asyncio.ensure_future(tokens.insert(token(TokenId(USER, "first"))))
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(tokens.insert(token(TokenId(USER, "second"))))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.wait([second])
        other.execute("ROLLBACK")
        other.close()
        assert await first is not None
        await tokens.insert(token(TokenId(USER, "third")))
    assert [row["provider"] for row in store.rows()] == ["first", "third"]


async def test_a_locked_database_times_out_and_writes_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    async with store.open() as tokens:
        other = sqlite_connection(store.path)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreTimeout):
            await tokens.insert(token())
        assert await tokens.get(TokenId(USER, "canvas")) is None, "reads do not wait for the lock"
        other.execute("ROLLBACK")
        other.close()
    assert store.rows() == []


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    connection = apsw.Connection(str(path))
    connection.execute(
        "CREATE TABLE oauth_tokens (id TEXT PRIMARY KEY, user_id TEXT, provider TEXT, service_type TEXT)"
    )
    connection.close()
    with pytest.raises(StoreMisconfigured, match=r"lacks the columns .*access_token, .*encryption_scheme"):
        SqliteRepository(path=path)


async def _empty_log(path: Path) -> None:
    """Empty the write-ahead log, so that the next write appends to what it begins and cannot begin it again."""
    connection = sqlite_connection(path)

    def is_empty() -> bool:
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except apsw.BusyError:
            return False
        return path.with_name("vault.db-wal").stat().st_size == 0

    await eventually_async(is_empty)
    connection.close()


async def test_a_full_disk_fails_the_check_and_space_mends_it(tmp_path: Path) -> None:
    """RLIMIT_FSIZE stands for the disk: tests/failures/test_sqlite.py fills a file system."""
    path = tmp_path / "vault.db"
    async with SqliteStore(path).open() as tokens:
        await _empty_log(path)
        await tokens.insert(token(TokenId(USER, "first")))
        with file_size_limit(path.with_name("vault.db-wal").stat().st_size):
            await tokens.check()  # no write has failed yet, and the disk has space
            with pytest.raises(StoreUnavailable):
                await tokens.insert(token(TokenId(USER, "second")))
            with pytest.raises(WritesUnavailable):
                await tokens.check()
            assert await tokens.get(TokenId(USER, "first")) is not None
        await once_available(tokens.check)
        assert await tokens.insert(token(TokenId(USER, "second"))) is not None


async def test_a_disk_too_full_for_a_token_fails_the_check(tmp_path: Path) -> None:
    """The check's own small write, and small writes of callers, still fit."""
    path = tmp_path / "vault.db"
    large = token(TokenId(USER, "large"), access_ciphertext="x" * 60_000)
    async with SqliteStore(path).open() as tokens:
        await _empty_log(path)
        await tokens.insert(token(TokenId(USER, "first")))
        with file_size_limit(path.with_name("vault.db-wal").stat().st_size + 30_000):
            with pytest.raises(StoreUnavailable):
                await tokens.insert(large)
            with pytest.raises(WritesUnavailable):
                await tokens.check()
            assert await tokens.insert(token(TokenId(USER, "small"))) is not None
            with pytest.raises(WritesUnavailable):
                await tokens.check()
        await once_available(tokens.check)
        assert await tokens.insert(large) is not None
