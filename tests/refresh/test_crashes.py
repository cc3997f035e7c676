"""A process that is killed or stopped at any step of a refresh: what the next one finds, for each kind of rotation.

docs/refresh.md has the table that these tests walk.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import httpx
import pytest

from app.errors import TokenInactive
from app.refresh.refresher import SPENDING_SECONDS
from app.tokens.models import TokenStatus
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.paths import ROOT
from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path
from tests.support.refresh import HERE, Replica, replicas
from tests.support.refresh_process import AT_THE_PROVIDER, RefreshingProcess, refreshing
from tests.support.sizes import SOAK
from tests.support.stores.stores import SqliteStore, sqlite_connection
from tests.support.waiting import eventually, eventually_async, once_available

HOUR: Final = timedelta(hours=1)
ROTATIONS: Final = ("none", "reusable", "single_use")
Rotation = Literal["none", "reusable", "single_use"]


@dataclass(frozen=True, slots=True)
class Moment:
    """A moment of a refresh, as the table of the document names it, and where the process is then."""

    name: str
    point: str
    answer: Answer | None = None


BEFORE_5: Final = "before step 5"
IN_5: Final = "in step 5, after the provider has worked"
BEFORE_7: Final = "before step 7"
MOMENTS: Final = (
    Moment("before step 1", "before the read"),
    Moment("before step 3", "before the intent"),
    Moment("before step 4", "before the claim"),
    Moment(BEFORE_5, "after the claim"),
    Moment("in step 5, before the provider has worked", AT_THE_PROVIDER, Answer(status=503)),
    Moment(IN_5, AT_THE_PROVIDER, Answer(commits=True)),
    Moment(BEFORE_7, "before the write"),
    Moment("before step 8", "after the write"),
    Moment("after step 8", "after the outcome of the refresh"),
)


STOPPED_MOMENTS: Final = tuple(moment for moment in MOMENTS if moment.name in {BEFORE_5, IN_5, BEFORE_7})
# in `make test` every moment of single-use tokens, and of the others those that differ
CELLS: Final = [(rotation, spooled) for rotation in ROTATIONS for spooled in (False, True)]
FEW: Final = {("none", False), ("reusable", True)}


def _cells(moments: Iterable[Moment]) -> list[Any]:
    return [
        pytest.param(moment, rotation, spooled, id=f"{moment.name}, {rotation}{', spool' if spooled else ''}")
        for moment in moments
        for rotation, spooled in CELLS
        if SOAK or rotation == "single_use" or (moment.name in {IN_5, BEFORE_7} and (rotation, spooled) in FEW)
    ]


def _table(event: str) -> dict[str, list[str]]:
    """Return what the document says: for each moment its six cells."""
    head = f"| {event} | none | reusable | single use | none, spool | reusable, spool | single use, spool |\n"
    table = (ROOT / "docs" / "refresh.md").read_text().partition(head)[2].partition("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines()[1:]]
    return {name.strip(): [cell.strip() for cell in cells] for name, *cells in rows}


def test_the_tables_have_a_row_for_each_moment() -> None:
    assert list(_table("killed")) == [moment.name for moment in MOMENTS]
    assert list(_table("stopped")) == [moment.name for moment in STOPPED_MOMENTS]


@asynccontextmanager
async def _scene(
    folder: Path, *, rotation: Rotation = "single_use", spooled: bool = False, **entry: Any
) -> AsyncIterator[tuple[SqliteStore, OAuthStandIn, Replica]]:
    """Yield a store with a token that has expired, its provider, and the replica that starts after the crash."""
    store, spool = SqliteStore(folder / "vault.db"), folder / "spool" if spooled else None
    async with store.open() as tokens:
        with oauth_stand_in(rotation=rotation) as provider:
            async with replicas(tokens, provider, spool=spool, **entry) as [replica]:
                await once_available(lambda: replica.store(refresh_token=provider.seed(), expires_at=replica.clock()))
                yield store, provider, replica


@asynccontextmanager
async def _at(
    moment: Moment, store: SqliteStore, provider: OAuthStandIn, *, spool: Path | None, lease_seconds: int = 180
) -> AsyncIterator[tuple[RefreshingProcess, threading.Event]]:
    """Let a process refresh the token up to the moment; yield it, and the event that lets the provider answer."""
    release = threading.Event()
    if moment.answer is not None:
        provider.script(replace(moment.answer, hold=release))
    with refreshing(
        HERE, store=store, provider=provider, until=moment.point, spool=spool, lease_seconds=lease_seconds
    ) as process:
        try:
            if moment.point == AT_THE_PROVIDER:
                await eventually_async(lambda: len(provider.requests) == 1)
            else:
                await asyncio.to_thread(process.reach)
            yield process, release
        finally:
            release.set()


async def _require(said: str, replica: Replica, provider: OAuthStandIn) -> None:
    """Reveal the token as the next process does, and require what a cell of the table says."""
    asked = len(provider.requests)
    if said == "lost":
        with pytest.raises(TokenInactive):
            await replica.reveal()
        row = await replica.row()
        assert (row.status, row.status_reason) == (TokenStatus.NEEDS_REAUTH, "refresh_outcome_lost")
        return
    access, met = await replica.reveal()
    assert (access != "first", met) == (True, True)
    assert (said, provider.refreshes) in {("refreshed", 1), ("again", 2), ("stored", 1)}
    assert (len(provider.requests) == asked) is (said == "stored")
    assert provider.reuses == 0


async def _require_refresh_token_works(replica: Replica) -> None:
    before = await replica.reveal()
    replica.clock.passed += HOUR
    assert await replica.reveal() != before


@pytest.mark.parametrize(("moment", "rotation", "spooled"), _cells(MOMENTS))
async def test_a_killed_process_leaves_what_the_table_says(
    tmp_path: Path, moment: Moment, rotation: Rotation, *, spooled: bool
) -> None:
    said = _table("killed")[moment.name][ROTATIONS.index(rotation) + 3 * spooled]
    async with _scene(tmp_path, rotation=rotation, spooled=spooled) as (store, provider, replica):
        before, spool = await replica.row(), tmp_path / "spool" if spooled else None
        async with _at(moment, store, provider, spool=spool) as (process, _):
            process.kill()
        if replica.recovery is not None:
            await replica.recovery.run_once()
            assert list((tmp_path / "spool").iterdir()) == []
        store.update_raw(before.id, refresh_leased_until=0)  # time passes, by the store's clock
        await _require(said, replica, provider)
        if said != "lost":
            await _require_refresh_token_works(replica)


@pytest.mark.parametrize(("moment", "rotation", "spooled"), _cells(STOPPED_MOMENTS))
async def test_a_stopped_process_leaves_what_the_table_says(
    tmp_path: Path, moment: Moment, rotation: Rotation, *, spooled: bool
) -> None:
    """It is stopped beyond its lease, another replica takes over, and then it goes on."""
    said = _table("stopped")[moment.name][ROTATIONS.index(rotation) + 3 * spooled]
    async with _scene(tmp_path, rotation=rotation, spooled=spooled) as (store, provider, replica):
        before, spool = await replica.row(), tmp_path / "spool" if spooled else None
        lease_seconds = math.ceil(SPENDING_SECONDS) if moment.name == BEFORE_5 else 180
        async with _at(moment, store, provider, spool=spool, lease_seconds=lease_seconds) as (process, release):
            process.stop()
            store.update_raw(before.id, refresh_leased_until=0)  # time passes, by the store's clock
            await _require(said, replica, provider)
            after = await replica.row()
            if moment.point != AT_THE_PROVIDER:
                process.proceed()
            release.set()
            process.resume()
            answer = await asyncio.to_thread(process.end)
        row = await replica.row()
        if said == "lost":  # the spent refresh token gives way to its successor, which does not mend the token
            assert (row.status, row.status_reason) == (after.status, after.status_reason)
        else:
            assert row == after, "the stopped process undoes nothing"
        gives_up = moment.name == BEFORE_5
        if said == "lost":
            assert answer == "token_inactive"
        else:
            assert answer == ("refresh_in_progress" if gives_up else (await replica.reveal())[0])
            await _require_refresh_token_works(replica)
        assert (provider.reuses, spool is None or list(spool.iterdir()) == []) == (said == "lost", True)


def _home(folder: Path, provider: OAuthStandIn) -> Home:
    return new_home(folder, OAUTH_PROVIDERS=json.dumps({"acme": provider.entry()}), REFRESH_SPOOL_DIR="spool")


def _stored(server: Server, provider: OAuthStandIn) -> str:
    """Store a token that has expired; return its path."""
    path = token_path(uuid4(), "acme")
    body = {"access_token": "first", "refresh_token": provider.seed(), "expires_at": "2026-01-01T00:00:00Z"}
    with server.client() as client:
        assert client.put(path, json=body).status_code == 201
    return path


def test_a_server_that_is_killed_stores_the_answer_after_its_restart(tmp_path: Path, serve: Serve) -> None:
    release = threading.Event()
    with oauth_stand_in() as provider, ThreadPoolExecutor(1) as threads:
        home = _home(tmp_path, provider)
        with serve(home) as server, closing(sqlite_connection(tmp_path / "data" / "vault.db")) as database:
            path = _stored(server, provider)
            provider.script(Answer(commits=True, hold=release))
            threads.submit(_get, server, path)
            eventually(lambda: len(provider.requests) == 1)
            database.execute("BEGIN IMMEDIATE")  # the store takes no writes
            release.set()
            eventually(lambda: len(list((tmp_path / "spool").glob("*.refresh"))) == 1)
            server.kill()
            database.execute("ROLLBACK")
        with serve(home) as server:
            eventually(lambda: list((tmp_path / "spool").iterdir()) == [])
            assert _get(server, path) == (200, "at-2-of-the-stand-in")
            eventually(lambda: '"event":"refresh_finished_from_spool"' in server.output)
        assert (provider.refreshes, provider.reuses) == (1, 0)


def test_a_server_that_ends_stores_the_answer_of_its_provider(tmp_path: Path, serve: Serve) -> None:
    release = threading.Event()
    with oauth_stand_in() as provider, ThreadPoolExecutor(1) as threads:
        with serve(_home(tmp_path, provider)) as server:
            path = _stored(server, provider)
            provider.script(Answer(commits=True, hold=release))
            answer = threads.submit(_get, server, path)
            eventually(lambda: len(provider.requests) == 1)
            server.terminate()
            eventually(lambda: "Shutting down" in server.output)
            release.set()
            assert answer.result(60) == (200, "at-2-of-the-stand-in")
            assert server.ended().exit_code == 0
        assert list((tmp_path / "spool").iterdir()) == []


def _get(server: Server, path: str) -> tuple[int, str | None]:
    with server.client() as client:
        client.timeout = 60
        try:
            answer = client.get(path)
        except httpx.TransportError:
            return 0, None
    return answer.status_code, answer.json().get("access_token")
