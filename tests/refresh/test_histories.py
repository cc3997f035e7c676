"""Random histories of a token's owner beside refreshes by two replicas: no write and no refresh token is lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app.errors import RefreshInProgress, TokenNotFound
from app.tokens.models import StoredToken, TokenId, TokenInput, TokenPatch
from app.tokens.repository import TokenRepository
from tests.support.oauth.stand_in import Answer, OAuthStandIn, oauth_stand_in
from tests.support.refresh import CALLER, Replica, replicas
from tests.support.sizes import size
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.pausing import Pause, pauses, pausing
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore

KEY_VERSIONS: Final = (1, 2)  # one replica has not been given the new key yet, and each rewraps to its own
# a rotation of the access token alone is in test_races.py: docs/refresh.md says what two refreshes may do beside it
CHANGES: Final = ("patch", "rewrap", "rotate", "store", "delete", "erase")
calls = st.lists(
    st.tuples(st.sampled_from(["reveal", *CHANGES]), st.sampled_from(range(len(KEY_VERSIONS)))), min_size=1, max_size=8
)
waits = st.lists(st.integers(0, 6), min_size=1, max_size=8)


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses in milliseconds, repeated: around the owners' and the refreshes' calls of the store, and between calls.

    `provider` is how long the provider takes.
    """

    owners: list[int]
    refreshes: list[int]
    between_calls: list[int]
    between_refreshes: list[int]
    provider: int


all_histories = given(
    histories=st.lists(calls, min_size=1, max_size=3),
    timing=st.builds(Timing, waits, waits, waits, waits, st.integers(0, 30)),
)


@dataclass(slots=True)
class Owner:
    """The only writer of a token, with what it expects of it. `written` is `None` while the token is deleted.

    What a refresh leaves is expected too, if it is of the `grant` that the owner has stored last.
    """

    provider: OAuthStandIn
    replicas: Sequence[Replica]
    token_id: TokenId = field(default_factory=lambda: TokenId(str(uuid4()), "acme"))
    written: str | None = None
    grant: str = ""  # its first refresh token
    notes: int | None = None
    version: int = 0
    done: int = 0

    async def make(self, history: list[tuple[str, int]], pause: Pause) -> None:
        for action, replica in history:
            await pause()
            self.done += 1
            try:
                await getattr(self, action)(self.replicas[replica])
            except TokenNotFound:
                assert self.written is None
            else:
                assert action in {"store", "delete", "erase"} or self.written is not None, "a deleted token returned"

    async def store(self, replica: Replica) -> None:
        secret, grant = f"written {self.done}", self.provider.seed()
        row = await replica.store(token_id=self.token_id, access_token=secret, refresh_token=grant)
        self.written, self.grant, self.notes = secret, grant, None
        self._saw(row)

    async def rotate(self, replica: Replica) -> None:
        secret, grant = f"written {self.done}", self.provider.seed()
        rotated = TokenInput(
            access_token=SecretStr(secret),
            refresh_token=SecretStr(grant),
            expires_at=replica.clock() + timedelta(hours=1),
        )
        row = await replica.vault.rotate(self.token_id, rotated, caller=CALLER)
        self.written, self.grant = secret, grant
        self._saw(row)

    async def patch(self, replica: Replica) -> None:
        row = await replica.vault.patch(self.token_id, TokenPatch(metadata={"notes": self.done}), caller=CALLER)
        self.notes = self.done
        self._saw(row)

    async def rewrap(self, replica: Replica) -> None:
        await replica.vault.rewrap(self.token_id, caller=CALLER)

    async def delete(self, replica: Replica) -> None:
        await replica.vault.delete(self.token_id, caller=CALLER)
        self.written = None

    async def erase(self, replica: Replica) -> None:
        erasure = await replica.vault.delete_for_user(self.token_id.user_id, caller=CALLER)
        assert erasure.deleted == (self.written is not None)
        self.written = None

    async def reveal(self, replica: Replica) -> None:
        access, _ = await replica.reveal(self.token_id, min_ttl_seconds=0)
        current = access == self.written or self.provider.belong_together(access, self.grant)
        assert current, "an older token came back"
        assert (await replica.row(self.token_id)).metadata.get("notes") == self.notes

    async def require_whole(self, tokens: TokenRepository) -> None:
        """Require that the token is gone, or that the provider accepts its refresh token."""
        [replica, *_] = self.replicas
        if self.written is None:
            assert await tokens.get(self.token_id) is None
            return
        await self.reveal(replica)
        assert self.provider.accepts(await replica.refresh_token(self.token_id))
        version = (await replica.row(self.token_id)).version
        _, fresh = await replica.reveal(self.token_id, rejected_version=version)
        assert fresh

    def _saw(self, row: StoredToken) -> None:
        assert row.version > self.version
        self.version = row.version


@settings(max_examples=size(10, 100), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_sqlite(histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_history(SqliteStore(Path(folder) / "vault.db"), histories, timing))


@settings(max_examples=size(5, 60), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_supabase(supabase: SupabaseStack, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    supabase.reset()  # for each history, not only for the first
    asyncio.run(_history(SupabaseStore(supabase), histories, timing))


@settings(max_examples=size(5, 60), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_postgres(supabase: SupabaseStack, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    supabase.reset()  # for each history, not only for the first
    asyncio.run(_history(PostgresStore(supabase), histories, timing))


async def _history(store: Store, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    with oauth_stand_in() as provider:
        provider.always(Answer(commits=True, delay_seconds=timing.provider / 1000))
        async with (
            store.open() as tokens,
            _replicas(pausing(tokens, pauses(timing.owners)), provider) as of_owners,
            _replicas(pausing(tokens, pauses(timing.refreshes)), provider) as refreshing,
        ):
            owners = [Owner(provider, of_owners) for _ in histories]
            for owner in owners:
                await owner.store(of_owners[0])
            over, between = asyncio.Event(), pauses(timing.between_calls)
            refreshes = [
                asyncio.create_task(_refresh_until(over, replica, owner.token_id, timing))
                for owner in owners
                for replica in refreshing
            ]
            await asyncio.gather(*(owner.make(made, between) for owner, made in zip(owners, histories, strict=True)))
            over.set()
            await asyncio.gather(*refreshes)
            for owner in owners:
                await owner.require_whole(tokens)
        assert provider.reuses == 0


async def _refresh_until(over: asyncio.Event, replica: Replica, token_id: TokenId, timing: Timing) -> None:
    """Refresh the token again and again."""
    between = pauses(timing.between_refreshes)
    while not over.is_set():
        await between()
        row = await replica.tokens.get(token_id)
        if isinstance(row, StoredToken):
            try:
                await replica.reveal(token_id, rejected_version=row.version)
            except (TokenNotFound, RefreshInProgress):
                continue


@asynccontextmanager
async def _replicas(tokens: TokenRepository, provider: OAuthStandIn) -> AsyncIterator[list[Replica]]:
    """Run a replica for each version of the key."""
    async with AsyncExitStack() as stack:
        yield [
            replica
            for version in KEY_VERSIONS
            for replica in await stack.enter_async_context(replicas(tokens, provider, key_version=version))
        ]
