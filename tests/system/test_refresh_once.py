"""Many readers of several processes, and a token that is due again every second: one refresh each time.

The provider is `oidc-provider`, which rotates refresh tokens and ends the grant of one that comes a second time.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import pytest

from tests.support.oauth.oidc import Counts, OidcServer
from tests.support.process.home import new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import token_path
from tests.support.sizes import size
from tests.support.stack.supabase import SupabaseStack
from tests.support.waiting import eventually

PROCESSES = size(2, 8)
READERS = size(6, 50)  # of each process
EXPIRIES = size(3, 30)
LIFETIME_SECONDS = 2  # a token is due when half of its lifetime has passed
DUE_AFTER = timedelta(seconds=1)
PAUSE_SECONDS = 0.1
LONGEST_SECONDS = size(120, 1_200)


@dataclass(slots=True)
class Readings:
    """The tokens that the readers got, by version, and how many answers were fresh or else what they were."""

    expiries: dict[int, datetime] = field(default_factory=dict)
    secrets: dict[int, str] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)

    def note(self, asked_at: datetime, status: int, retry_after: str | None, body: dict[str, Any]) -> int | None:
        """Require a token that is fresh, or an answer that says that it is not; return the version of a fresh token."""
        if status != 200:
            assert body["retryable"], body
            assert retry_after is not None
            self.answers[body["code"]] += 1
            return None
        version, secret, expires_at = body["version"], body["access_token"], datetime.fromisoformat(body["expires_at"])
        assert self.secrets.setdefault(version, secret) == secret
        assert self.expiries.setdefault(version, expires_at) == expires_at
        self.answers["fresh" if body["min_ttl_met"] else "still valid"] += 1
        if not body["min_ttl_met"]:
            return None
        assert expires_at > asked_at
        return int(version)


@pytest.fixture(params=["supabase", "postgres"])
def store(request: pytest.FixtureRequest, supabase: SupabaseStack) -> dict[str, str]:
    """The settings of the store."""
    if request.param == "postgres":
        return {"TOKEN_STORE": "postgres", "DATABASE_URL": supabase.login_url}
    return {"TOKEN_STORE": "supabase", "SUPABASE_URL": supabase.url, "SUPABASE_SERVICE_KEY": supabase.service_key}


@pytest.fixture
def servers(store: dict[str, str], oidc: OidcServer, serve: Serve, tmp_path: Path) -> Iterator[list[Server]]:
    """The processes, each with a port of its own."""
    settings = {**store, "OAUTH_PROVIDERS": json.dumps({"acme": oidc.entry()})}
    with ExitStack() as stack:
        folders = [tmp_path / str(number) for number in range(PROCESSES)]
        for folder in folders:
            folder.mkdir()
        yield [stack.enter_context(serve(new_home(folder, **settings))) for folder in folders]


def test_each_expiry_causes_one_refresh_in_all_processes(servers: list[Server], oidc: OidcServer) -> None:
    oidc.reset(access_token_seconds=LIFETIME_SECONDS)
    path = token_path(uuid4(), "acme")
    with servers[0].client() as client:
        body = {"access_token": "first", "refresh_token": oidc.seed(), "expires_at": "2026-01-01T00:00:00Z"}
        first = client.put(path, json=body).json()["version"]
        readings = asyncio.run(_read(servers, path, until_version=first + EXPIRIES))

        def refreshes_behind() -> int:
            version = client.get(path, params={"min_ttl": 0}).json()["version"]
            return int(oidc.counts().refreshes - (version - first))

        eventually(lambda: refreshes_behind() == 0)  # the last refresh may not have ended
    counts = oidc.counts()
    assert counts == Counts(refreshes=counts.refreshes, reuses=0, rejected=0, revoked=0)
    assert counts.refreshes >= EXPIRIES
    seen = sorted(readings.expiries)
    assert all(
        readings.expiries[version + 1] - readings.expiries[version] >= DUE_AFTER
        for version in seen
        if version + 1 in readings.expiries
    ), "no refresh before the token was due"


async def _read(servers: Sequence[Server], path: str, *, until_version: int) -> Readings:
    """Read with every reader until one of them has seen this version, and each has got a token."""
    readings, over, deadline = Readings(), asyncio.Event(), time.monotonic() + LONGEST_SECONDS

    async def reader(session: aiohttp.ClientSession, url: str) -> None:
        highest = 0
        while not (over.is_set() and highest):
            assert time.monotonic() < deadline, readings
            asked_at = datetime.now(UTC)
            async with session.get(url) as answer:
                body = await answer.json(content_type=None)
                version = readings.note(asked_at, answer.status, answer.headers.get("Retry-After"), body)
            if version is not None:
                assert version >= highest, "a newer token was there before"
                highest = version
            if highest >= until_version:
                over.set()
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))  # noqa: S311  spreads readers out

    async with AsyncExitStack() as sessions:
        opened = [await sessions.enter_async_context(_session(server)) for server in servers]
        async with asyncio.TaskGroup() as tasks:
            for server, session in zip(servers, opened, strict=True):
                for _ in range(READERS):
                    tasks.create_task(reader(session, server.url + path))
    return readings


def _session(server: Server) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=READERS),
        headers={"Authorization": f"Bearer {server.home.service_key}"},
        timeout=aiohttp.ClientTimeout(total=LONGEST_SECONDS),
    )
