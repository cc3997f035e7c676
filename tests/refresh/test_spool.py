"""The spool: new tokens that could not be stored outlive their process, on every store."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
import structlog
from pydantic import SecretStr

from app.refresh.spool import RefreshSpool, SpoolError
from app.refresh.spool_recovery import SPOOL_SERVICE
from app.tokens import transitions
from app.tokens.models import StoredToken, TokenId, TokenInput, TokenPatch
from app.tokens.repository import TokenRepository
from tests.support.oauth.stand_in import OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, HERE, USER, Replica, replicas
from tests.support.spool import INTENT, NEW_ACCESS, NEW_REFRESH, Unwritten, left_in_spool, refreshed_row
from tests.support.stores.failing import Failures, failing
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import once_available

OTHER = TokenId(USER, "acme", "other")


@asynccontextmanager
async def _replica(
    folder: Path, tokens: TokenRepository | None = None, *, failures: Failures | None = None, **entry: Any
) -> AsyncIterator[tuple[Replica, OAuthStandIn]]:
    """Run a replica with a spool and a stored token, on SQLite unless another store is given."""
    async with SqliteStore(folder / "vault.db").open() as sqlite:
        repository = failing(tokens or sqlite, failures or Failures())
        with oauth_stand_in() as provider:
            async with replicas(repository, provider, spool=folder / "spool", **entry) as [replica]:
                await once_available(lambda: replica.store(refresh_token=provider.seed()))
                yield replica, provider


async def _recover(replica: Replica) -> list[str]:
    """Let the replica finish what lies in the spool; return the names of the events that it logged."""
    assert replica.recovery is not None
    with structlog.testing.capture_logs() as logged:
        await replica.recovery.run_once()
    return [line["event"] for line in logged]


async def test_the_next_process_stores_what_is_in_the_spool(tokens: TokenRepository, tmp_path: Path) -> None:
    async with _replica(tmp_path, tokens) as (replica, provider):
        left = await left_in_spool(replica, tmp_path / "spool")
        assert await _recover(replica) == ["refresh_finished_from_spool"]
        assert await replica.row() == left.after
        assert not left.file.exists()
        [event] = [event for event in replica.trail.kept if event.operation == "refresh"]
        assert (event.outcome, event.intent, event.caller.service) == ("success", INTENT, SPOOL_SERVICE)
        assert (await replica.reveal(), provider.requests) == ((NEW_ACCESS, True), [])


async def test_a_change_of_metadata_since_then_stays(tokens: TokenRepository, tmp_path: Path) -> None:
    async with _replica(tmp_path, tokens) as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        await replica.vault.patch(HERE, TokenPatch(metadata={"course": 4}), caller=CALLER)
        await _recover(replica)
        row = await replica.row()
        assert (row.metadata, row.version, row.scopes) == ({"course": 4}, left.after.version + 1, ("calendar",))
        assert await replica.reveal() == (NEW_ACCESS, True)


@pytest.mark.parametrize("change", ["stored", "deleted"])
async def test_nothing_newer_is_undone_by_the_spool(tmp_path: Path, change: str) -> None:
    async with _replica(tmp_path) as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        if change == "stored":
            await replica.store(access_token="stored", refresh_token=None)
        else:
            await replica.vault.delete(HERE, caller=CALLER)
        before = await replica.tokens.get(HERE)
        assert await _recover(replica) == ["refresh_spool_superseded"]
        assert await replica.tokens.get(HERE) == before
        assert not left.file.exists()
        if change != "deleted":
            assert replica.trail.outcomes("refresh") == ["superseded"]


async def _taken_over(replica: Replica, left: Unwritten, folder: Path) -> StoredToken:
    """Let another replica, which does not share the spool, take the lease over; return the row."""
    SqliteStore(folder / "vault.db").update_raw(left.claimed.id, refresh_leased_until=0)
    assert await replica.tokens.claim_refresh(left.claimed, holder=str(uuid4()), lease_seconds=600)
    return await replica.row()


async def test_a_takeover_that_waits_gets_what_is_in_the_spool(tmp_path: Path) -> None:
    """After an outage of the store that was longer than the lease, and in which the holder has started again."""
    async with _replica(tmp_path) as (replica, provider):
        left = await left_in_spool(replica, tmp_path / "spool")
        await _taken_over(replica, left, tmp_path)
        assert await _recover(replica) == ["refresh_finished_from_spool"]
        assert (await replica.reveal(), provider.requests) == ((NEW_ACCESS, True), [])
        assert (await replica.row()).refresh_state.holder is None
        assert not left.file.exists()


async def test_a_takeover_that_fails_gets_the_successor(tmp_path: Path) -> None:
    """It may have failed before it reached the provider, which does not refuse the old refresh token."""
    async with _replica(tmp_path, rotation="reusable") as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        taken = await _taken_over(replica, left, tmp_path)
        assert await _recover(replica) == ["refresh_unwritten"]
        assert await replica.row() == taken
        assert left.file.exists()
        assert await replica.tokens.settle_refresh(taken, transitions.refresh_released(taken, failure=None))
        assert await _recover(replica) == ["refresh_spool_superseded"]
        assert (await replica.cipher.open(await replica.row())).refresh == SecretStr(NEW_REFRESH)
        assert not left.file.exists()


async def test_a_rotation_since_then_gets_the_successor_of_what_it_kept(tmp_path: Path) -> None:
    """A rotation without a refresh token keeps the one that the refresh has spent."""
    async with _replica(tmp_path) as (replica, _):
        await left_in_spool(replica, tmp_path / "spool")
        given = TokenInput(access_token=SecretStr("rotated"), expires_at=replica.clock() + timedelta(hours=1))
        await replica.vault.rotate(HERE, given, caller=CALLER)
        assert await _recover(replica) == ["refresh_spool_superseded"]
        secrets = await replica.cipher.open(await replica.row())
        assert secrets.access.get_secret_value() == "rotated"
        assert secrets.refresh == SecretStr(NEW_REFRESH)


@pytest.mark.parametrize("kind", ["refused", "answers_lost"])
@pytest.mark.parametrize("method", ["read_back", "settle_refresh"])
async def test_a_store_that_is_down_at_the_start_is_tried_again(tmp_path: Path, kind: str, method: str) -> None:
    failures = Failures()
    async with _replica(tmp_path, failures=failures) as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        getattr(failures, kind)[method] = 2
        assert await _recover(replica) == ["refresh_unwritten"]
        assert left.file.exists()
        await _recover(replica)
        await _recover(replica)
        assert not left.file.exists()
        assert replica.trail.outcomes("refresh") == ["success"]
        assert await replica.reveal() == (NEW_ACCESS, True)


async def test_an_outcome_that_cannot_be_recorded_keeps_its_file(tmp_path: Path) -> None:
    async with _replica(tmp_path) as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        replica.trail.refuses = True
        assert await _recover(replica) == ["refresh_unwritten"]
        assert (await replica.row() == left.after, left.file.exists()) == (True, True)
        replica.trail.refuses = False
        await _recover(replica)
        assert (replica.trail.outcomes("refresh"), left.file.exists()) == (["success"], False)


async def test_a_refresh_finishes_what_a_dead_holder_has_left(tmp_path: Path) -> None:
    """Otherwise it would spend a refresh token for the second time."""
    async with _replica(tmp_path) as (replica, provider):
        left = await left_in_spool(replica, tmp_path / "spool")
        SqliteStore(tmp_path / "vault.db").update_raw(left.claimed.id, refresh_leased_until=0)
        assert await replica.reveal(min_ttl_seconds=86_400, rejected_version=left.claimed.version) == (NEW_ACCESS, True)
        assert (provider.requests, left.file.exists()) == ([], False)


async def test_the_file_of_a_living_process_is_left_to_it(tmp_path: Path) -> None:
    async with _replica(tmp_path) as (replica, _):
        claimed, after = await refreshed_row(replica)
        async with RefreshSpool(tmp_path / "spool").kept(claimed, after, intent=None):
            assert await _recover(replica) == []
            assert (await replica.row()).version == claimed.version
            assert len(_names(tmp_path)) == 1
        assert _names(tmp_path) == []


async def test_nothing_in_the_spool_is_readable_without_the_key(tmp_path: Path) -> None:
    async with _replica(tmp_path) as (replica, _):
        left = await left_in_spool(replica, tmp_path / "spool")
        content = left.file.read_bytes()
        for readable in (NEW_ACCESS, NEW_REFRESH, "first", "acme", USER, "default"):
            assert readable.encode() not in content
        assert json.loads(content.partition(b"\n")[2])["access_ciphertext"] == left.after.access_ciphertext
        assert stat.S_IMODE(left.file.stat().st_mode) == 0o600
        assert stat.S_IMODE(left.file.parent.stat().st_mode) == 0o700


def _truncate(left: Unwritten) -> None:
    os.truncate(left.file, left.file.stat().st_size // 2)


def _empty(left: Unwritten) -> None:
    left.file.write_bytes(b"")


def _flip(left: Unwritten) -> None:
    content = bytearray(left.file.read_bytes())
    content[content.index(b'"generation":') + len(b'"generation":')] ^= 1
    left.file.write_bytes(content)


def _grow(left: Unwritten) -> None:
    os.truncate(left.file, 2 * 1024 * 1024)


def _rename(left: Unwritten) -> None:
    left.file.rename(left.file.with_name(f"{uuid4()}.refresh"))


def _pipe(left: Unwritten) -> None:
    left.file.unlink()
    os.mkfifo(left.file)


def _folder(left: Unwritten) -> None:
    left.file.unlink()
    left.file.mkdir()


def _link(left: Unwritten) -> None:
    elsewhere = left.file.parent.parent / "elsewhere"
    left.file.rename(elsewhere)
    left.file.symlink_to(elsewhere)


def _other_json(left: Unwritten) -> None:
    left.file.write_text("{}")


_DAMAGES: Final = (_truncate, _empty, _flip, _grow, _rename, _pipe, _folder, _link, _other_json)


@pytest.mark.parametrize("damage", _DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_file_is_reported_once_and_left(tmp_path: Path, damage: Callable[[Unwritten], None]) -> None:
    async with _replica(tmp_path) as (replica, provider):
        await replica.store(token_id=OTHER, refresh_token=provider.seed())
        left = await left_in_spool(replica, tmp_path / "spool")
        await left_in_spool(replica, tmp_path / "spool", OTHER)
        damage(left)
        before = _names(tmp_path)
        logged = await _recover(replica)
        assert min(logged) == "refresh_finished_from_spool", "the file of another token"
        assert len(logged) == 2
        assert logged != ["refresh_finished_from_spool"] * 2
        assert await _recover(replica) == []
        assert len(_names(tmp_path)) == len(before) - 1
        assert (await replica.row()).access_ciphertext == left.claimed.access_ciphertext
        assert (await replica.reveal(OTHER))[0] == NEW_ACCESS


async def test_a_file_whose_secrets_are_another_tokens_is_left(tmp_path: Path) -> None:
    """A ciphertext opens for its own token alone, so the row keeps what it can open."""
    async with _replica(tmp_path) as (replica, provider):
        await replica.store(token_id=OTHER, refresh_token=provider.seed())
        claimed, _ = await refreshed_row(replica)
        _, others = await refreshed_row(replica, OTHER)
        spool = RefreshSpool(tmp_path / "spool")
        with pytest.raises(RuntimeError):
            async with spool.kept(claimed, others, intent=None):
                raise RuntimeError
        assert await _recover(replica) == ["refresh_spool_refused"]
        assert (await replica.row()).access_ciphertext == claimed.access_ciphertext
        assert len(_names(tmp_path)) == 1


async def test_files_of_others_are_reported_and_left(tmp_path: Path) -> None:
    async with _replica(tmp_path) as (replica, _):
        spool = tmp_path / "spool"
        old, young = (spool / f"{uuid4()}.draft" for _ in range(2))
        for path in (spool / "notes.txt", spool / "x.draft", spool / ".refresh", old, young):
            path.write_text("{}")
        os.utime(old, (0, 0))
        assert await _recover(replica) == ["refresh_spool_refused"]
        assert _names(tmp_path) == sorted([".refresh", "notes.txt", "x.draft", young.name])


async def test_a_spool_that_cannot_be_written_fails_no_refresh(tmp_path: Path) -> None:
    async with _replica(tmp_path) as (replica, provider):
        (tmp_path / "spool").rmdir()
        row = await replica.row()
        with structlog.testing.capture_logs() as logged:
            assert (await replica.reveal(rejected_version=row.version))[0] != "first"
        assert [line["event"] for line in logged].count("refresh_spool_failed") == 1
        assert provider.refreshes == 1


async def test_a_row_with_any_holder_opens_no_other_file(tmp_path: Path) -> None:
    """The holder is a part of the file's name, and comes from the database."""
    spool = RefreshSpool(tmp_path)
    (tmp_path / "x.refresh").write_text("")
    for holder in ("x", "../x", "/etc/passwd", "\0", ""):
        async with spool.opened(holder) as file:
            assert file is None


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o707, 0o777, 0o770, 0o500])
def test_a_directory_with_other_permissions_is_refused(tmp_path: Path, mode: int) -> None:
    directory = tmp_path / "spool"
    directory.mkdir()
    directory.chmod(mode)
    with pytest.raises(SpoolError, match="0700"):
        RefreshSpool(directory).prepare()


def test_a_directory_that_others_can_replace_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "spool"
    directory.mkdir(mode=0o700)
    tmp_path.chmod(0o777)
    with pytest.raises(SpoolError, match="write to its folder"):
        RefreshSpool(directory).prepare()
    tmp_path.chmod(0o700)
    RefreshSpool(directory).prepare()


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "spool").iterdir())
