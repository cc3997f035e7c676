"""What an erasure leaves in the files of the SQLite store."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import apsw
import pytest

from app.stores.sqlite.database import connect, prepare_database
from app.stores.sqlite.group_commit import GroupCommitWriter
from app.tokens.models import StoredToken, TokenId
from tests.support.stores.stores import SqliteStore, insert_all, sqlite_connection, token
from tests.support.waiting import eventually_async

ERASED, KEPT = str(uuid4()), str(uuid4())


def _rows(user_id: str, mark: str, count: int) -> list[StoredToken]:
    """Return rows of very different sizes, so that pages are split, merged and continued on others."""
    sizes = random.Random(7)  # noqa: S311  no secret
    return [
        token(
            TokenId(user_id, f"p{number}"),
            access_ciphertext=f"{mark}-access-{number}-" * sizes.choice([1, 5, 40, 700]),
            refresh_ciphertext=f"{mark}-refresh-{number}-" * sizes.choice([1, 3, 30]),
            email=f"{mark}-email-{number}@example.edu",
        )
        for number in range(count)
    ]


def _files_with(folder: Path, mark: str) -> list[str]:
    return [path.name for path in sorted(folder.iterdir()) if mark.encode() in path.read_bytes()]


@pytest.mark.parametrize("count", [1, 150])
async def test_the_open_files_hold_nothing_of_an_erased_user(tmp_path: Path, count: int) -> None:
    erased, kept = _rows(ERASED, "erased-mark", count), _rows(KEPT, "kept-mark", count)
    both = [row for pair in zip(erased, kept, strict=True) for row in pair]
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        await insert_all(tokens, both)
        for before in erased[::2]:  # earlier versions of a row are in the write-ahead log too
            after = replace(before, version=2, access_ciphertext="erased-mark" * 90)
            assert await tokens.replace(before, after)
        assert _files_with(tmp_path, "erased-mark")
        assert (await tokens.delete_many(await tokens.list_for_user(ERASED))).deleted == count
        await eventually_async(lambda: _files_with(tmp_path, "erased-mark") == [])
        assert _files_with(tmp_path, "kept-mark") == ["vault.db"]
        assert len(await tokens.list_for_user(KEPT)) == count


async def test_the_open_files_hold_nothing_of_a_deleted_token(tmp_path: Path) -> None:
    [row] = _rows(ERASED, "erased-mark", 1)
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        await tokens.insert(row)
        assert _files_with(tmp_path, "erased-mark")
        assert await tokens.delete(row)
        await eventually_async(lambda: _files_with(tmp_path, "erased-mark") == [])


async def test_an_erasure_during_a_long_read_ends_after_it(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    async with SqliteStore(path).open() as tokens:
        await insert_all(tokens, _rows(ERASED, "erased-mark", 3))
        reader = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        reader.execute("BEGIN")
        assert len(reader.execute("SELECT * FROM oauth_tokens").fetchall()) == 3
        assert (await tokens.delete_many(await tokens.list_for_user(ERASED))).deleted == 3, (
            "the reader delays no answer"
        )
        assert _files_with(tmp_path, "erased-mark")
        reader.execute("COMMIT")
        reader.close()
        await eventually_async(lambda: _files_with(tmp_path, "erased-mark") == [])


async def test_the_next_start_ends_the_erasure_of_a_killed_process(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    [row] = _rows(ERASED, "erased-mark", 1)
    async with store.open() as tokens:
        await tokens.insert(row)
        other = sqlite_connection(store.path)  # keeps the write-ahead log, as a kill would
    other.execute("PRAGMA secure_delete = ON")
    other.execute("DELETE FROM oauth_tokens")
    copied = tmp_path / "copied"
    copied.mkdir()
    for path in (store.path, store.path.with_name("vault.db-wal")):
        (copied / path.name).write_bytes(path.read_bytes())
    other.close()
    assert _files_with(copied, "erased-mark")
    async with SqliteStore(copied / "vault.db").open():
        await eventually_async(lambda: _files_with(copied, "erased-mark") == [])


class _RecordingConnection(apsw.Connection):
    """Notes the busy timeout of each checkpoint."""

    busy_timeout = 0

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
        self.checkpoint_timeouts: list[int] = []

    def set_busy_timeout(self, milliseconds: int) -> None:
        self.busy_timeout = milliseconds
        super().set_busy_timeout(milliseconds)

    def wal_checkpoint(self, dbname: str | None = None, mode: int = apsw.SQLITE_CHECKPOINT_PASSIVE) -> tuple[int, int]:
        self.checkpoint_timeouts.append(self.busy_timeout)
        return super().wal_checkpoint(dbname, mode)


@pytest.mark.parametrize("long_read", [False, True])
async def test_no_write_waits_for_the_checkpoint_of_an_erasure(tmp_path: Path, long_read: bool) -> None:
    path = tmp_path / "vault.db"
    erased = _rows(ERASED, "erased-mark", 200)
    async with SqliteStore(path).open() as tokens:
        await insert_all(tokens, erased)
    reader, connection = connect(path), _RecordingConnection(path)
    if long_read:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM oauth_tokens").fetchall()
    writer = GroupCommitWriter(connect=lambda: connection, guard=lambda: None)
    for row in erased:
        assert await writer.execute("DELETE FROM oauth_tokens WHERE id = ? RETURNING id", (row.id,), erases=True)
    tried = len(connection.checkpoint_timeouts)
    await writer.close()
    reader.close()
    assert tried < len(erased) / 2, "erasures share checkpoints"
    assert set(connection.checkpoint_timeouts) == {0}, "a checkpoint waits for no other process"


async def test_a_closing_store_ends_its_erasures(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    [row] = _rows(ERASED, "erased-mark", 1)
    async with SqliteStore(path).open() as tokens:
        await tokens.insert(row)
        reader = connect(path)  # keeps the write-ahead log when the store closes
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM oauth_tokens").fetchall()
        assert await tokens.delete(row)
        reader.execute("COMMIT")
    assert _files_with(tmp_path, "erased-mark") == []
    reader.close()


async def test_another_worker_ends_the_erasure_of_one_that_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    [row] = _rows(ERASED, "erased-mark", 1)
    prepare_database(path)
    other = GroupCommitWriter(connect=lambda: connect(path), guard=lambda: None, checkpoint_interval_seconds=0.2)
    reader = connect(path)
    async with SqliteStore(path).open() as tokens:
        await tokens.insert(row)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM oauth_tokens").fetchall()
        assert await tokens.delete(row)
    assert _files_with(tmp_path, "erased-mark"), "the reader held it back until the store had closed"
    reader.execute("COMMIT")
    await eventually_async(lambda: _files_with(tmp_path, "erased-mark") == [])
    await other.close()
    reader.close()
