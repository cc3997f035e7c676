"""Random histories of clients beside sweeps: no acknowledged write is lost, and no deleted token returns."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from app.errors import TokenNotFound
from app.rewrap.on_read import RewrapOnRead
from app.security.encryption_service import EncryptionService
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, StoredToken, TokenId, TokenInput, TokenPatch
from app.tokens.repository import TokenRepository
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault
from tests.support.rewrap.stored_rows import local_encryption
from tests.support.rewrap.sweeps import sweep
from tests.support.sizes import size
from tests.support.stack.supabase import SupabaseStack
from tests.support.stores.pausing import pauses, pausing
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore

CALLER: Final = Caller("tests")
EVENTS: Final = TokenEvents(audit=NoAuditTrail())
OLD, NEW = 1, 2
calls = st.lists(
    st.tuples(
        st.sampled_from(["reveal", "reveal", "rotate", "rotate", "store", "patch", "delete"]),
        # a replica that has not been given the new key yet still writes under the old one
        st.sampled_from([OLD, NEW]),
    ),
    min_size=1,
    max_size=8,
)
waits = st.lists(st.integers(0, 4), min_size=1, max_size=8)


@dataclass(slots=True)
class Held:
    """The expected content of one token; `None` if it is deleted."""

    access: str | None = None
    refresh: str | None = None
    notes: int | None = None


class Client:
    """The only writer of a token, with its expected content."""

    def __init__(self, vaults: dict[int, TokenVault]) -> None:
        self.token_id = TokenId(str(uuid4()), "google")
        self.held = Held()
        self._vaults = vaults
        self._done = 0

    async def make(self, made: list[tuple[str, int]]) -> None:
        for action, version in made:
            self._done += 1
            await getattr(self, action)(self._vaults[version], f"secret {self._done} of {self.token_id.user_id}")

    async def store(self, vault: TokenVault, secret: str) -> None:
        given = TokenInput(access_token=SecretStr(secret), refresh_token=SecretStr(f"refresh {secret}"))
        result = await vault.store(self.token_id, given, caller=CALLER)
        assert result.created is (self.held.access is None)
        self.held = Held(secret, f"refresh {secret}")

    async def rotate(self, vault: TokenVault, secret: str) -> None:
        try:
            await vault.rotate(self.token_id, TokenInput(access_token=SecretStr(secret)), caller=CALLER)
        except TokenNotFound:
            assert self.held.access is None
        else:
            assert self.held.access is not None, "a deleted token returned"
            self.held.access = secret

    async def patch(self, vault: TokenVault, _: str) -> None:
        try:
            await vault.patch(self.token_id, TokenPatch(metadata={"notes": self._done}), caller=CALLER)
        except TokenNotFound:
            assert self.held.access is None
        else:
            assert self.held.access is not None, "a deleted token returned"
            self.held.notes = self._done

    async def delete(self, vault: TokenVault, _: str) -> None:
        try:
            await vault.delete(self.token_id, caller=CALLER)
        except TokenNotFound:
            assert self.held.access is None
        self.held = Held()

    async def reveal(self, vault: TokenVault, _: str = "") -> None:
        try:
            found = await vault.reveal(self.token_id, caller=CALLER, options=RevealOptions(include_refresh=True))
        except TokenNotFound:
            assert self.held.access is None
            return
        refresh = found.refresh_token.get_secret_value() if found.refresh_token else None
        seen = Held(found.access_token.get_secret_value(), refresh, found.token.metadata.get("notes"))
        assert seen == self.held


@dataclass(frozen=True, slots=True)
class Timing:
    """Pauses around calls of the store in milliseconds, repeated, for each kind of caller."""

    clients: list[int]
    sweeps: list[int]
    reads: list[int]
    between_sweeps: list[int]


all_histories = given(
    histories=st.lists(calls, min_size=1, max_size=4), timing=st.builds(Timing, waits, waits, waits, waits)
)


@settings(max_examples=size(15, 100), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_sqlite(histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    """Two sweeps at once, repeated, and rewraps on read run beside the clients."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_history(SqliteStore(Path(folder) / "vault.db"), histories, timing))


@settings(max_examples=size(6, 40), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_supabase(supabase: SupabaseStack, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    supabase.reset()  # for each history, not only for the first
    asyncio.run(_history(SupabaseStore(supabase), histories, timing))


@settings(max_examples=size(6, 40), deadline=None, suppress_health_check=list(HealthCheck))
@all_histories
def test_histories_on_postgres(supabase: SupabaseStack, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    supabase.reset()  # for each history, not only for the first
    asyncio.run(_history(PostgresStore(supabase), histories, timing))


async def _history(store: Store, histories: list[list[tuple[str, int]]], timing: Timing) -> None:
    async with store.open() as tokens:
        on_read = RewrapOnRead(
            tokens=pausing(tokens, pauses(timing.reads)),
            cipher=TokenCipher(encryption=local_encryption(NEW)),
            events=EVENTS,
            delay_seconds=0,
        )
        slow = pausing(tokens, pauses(timing.clients))
        vaults = {version: _vault(slow, local_encryption(version), on_read) for version in (OLD, NEW)}
        clients = [Client(vaults) for _ in histories]
        for client in clients:
            await client.store(vaults[OLD], "the first")
        over = asyncio.Event()
        sweeping = [asyncio.create_task(_sweep_until(over, tokens, timing)) for _ in range(2)]
        await asyncio.gather(*(client.make(made) for client, made in zip(clients, histories, strict=True)))
        over.set()
        await asyncio.gather(*sweeping)
        await on_read.close()
        report = await sweep(tokens, local_encryption(NEW)).run()
        assert (report.remaining, report.unreadable.total()) == (0, 0)
        for client in clients:
            await client.reveal(vaults[NEW])
            row = await tokens.get(client.token_id)
            assert (row is None) is (client.held.access is None)
            assert row is None or (isinstance(row, StoredToken) and _is_whole(row))


def _is_whole(row: StoredToken) -> bool:
    """Return whether both secrets and the columns about encryption are of the new key."""
    said = (row.encryption_scheme, row.encryption_method)
    secrets = [text for text in (row.access_ciphertext, row.refresh_ciphertext) if text is not None]
    return said == ("local:v2", "aes256-gcm-v2") and all(text.startswith("v2:") for text in secrets)


def _vault(tokens: TokenRepository, service: EncryptionService, on_read: RewrapOnRead) -> TokenVault:
    cipher = TokenCipher(encryption=service)
    return TokenVault(tokens=tokens, cipher=cipher, events=EVENTS, on_reveal=on_read.offer)


async def _sweep_until(over: asyncio.Event, tokens: TokenRepository, timing: Timing) -> None:
    slow, between = pausing(tokens, pauses(timing.sweeps)), pauses(timing.between_sweeps)
    while not over.is_set():
        report = await sweep(slow, local_encryption(NEW)).run()
        assert report.unreadable.total() == 0
        await between()
