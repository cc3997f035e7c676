"""The audit event of an operation comes before its outcome, and a refused event changes that outcome."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import SecretStr

from app.errors import AuditUnavailable, TokenNotFound
from app.observability.in_memory_counters import InMemoryCounters
from app.security.encryption_service import EncryptionService
from app.security.local_strategy import LocalStrategy
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvent, TokenEvents
from app.tokens.models import NO_SERVICE, Caller, RevealedToken, TokenId, TokenInput, current_service
from app.tokens.vault import TokenVault
from tests.support.security.keys import keyring
from tests.support.stores.stores import SqliteStore

CALLER = Caller("tests")


@dataclass
class _Trail:
    """An audit trail that keeps events, refuses them, or waits."""

    refuses: bool = False
    waits: asyncio.Event | None = None
    kept: list[TokenEvent] = field(default_factory=list)

    def require_open(self) -> None: ...

    async def append(self, event: TokenEvent) -> None:
        if self.waits is not None:
            await self.waits.wait()
        if self.refuses:
            raise AuditUnavailable("no")
        self.kept.append(event)

    async def append_many(self, events: Sequence[TokenEvent]) -> None:
        for event in events:
            await self.append(event)

    async def append_refusal(self, event: TokenEvent) -> None:
        await self.append(event)


@dataclass
class _Observer:
    observed: list[TokenEvent] = field(default_factory=list)

    def record(self, event: TokenEvent) -> None:
        self.observed.append(event)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        self.observed.extend(events)


@asynccontextmanager
async def _opened(folder: Path, trail: _Trail, observer: _Observer) -> AsyncIterator[TokenVault]:
    encryption = EncryptionService(primary=LocalStrategy(keyring=keyring()), counters=InMemoryCounters())
    encryption.encrypt_token("derives the key, which a busy machine may not do in time", str(uuid4()))
    async with SqliteStore(folder / "vault.db").open() as tokens:
        events = TokenEvents(audit=trail, observers=[observer])
        yield TokenVault(tokens=tokens, cipher=TokenCipher(encryption=encryption), events=events)


async def test_observers_get_the_outcome_that_the_caller_gets(tmp_path: Path) -> None:
    trail, observer, token_id = _Trail(), _Observer(), TokenId(str(uuid4()), "google")
    async with _opened(tmp_path, trail, observer) as vault:
        await vault.store(token_id, TokenInput(access_token=SecretStr("secret")), caller=CALLER)
        await vault.reveal(token_id, caller=CALLER)
        assert [event.outcome for event in observer.observed] == ["success", "success"]
        trail.refuses = True
        with pytest.raises(AuditUnavailable):
            await vault.reveal(token_id, caller=CALLER)
    assert (observer.observed[-1].outcome, observer.observed[-1].revealed) == ("audit_unavailable", ())
    assert [event.outcome for event in trail.kept] == ["intent", "success", "success"]


async def _stored(vault: TokenVault, count: int) -> list[TokenId]:
    token_ids = [TokenId(str(uuid4()), "google") for _ in range(count)]
    for token_id in token_ids:
        await vault.store(token_id, TokenInput(access_token=SecretStr("secret")), caller=CALLER)
    return token_ids


async def test_a_batch_leaves_one_event_for_each_token_or_is_refused(tmp_path: Path) -> None:
    trail, observer, missing = _Trail(), _Observer(), TokenId(str(uuid4()), "google")
    async with _opened(tmp_path, trail, observer) as vault:
        token_ids = [*await _stored(vault, 2), missing]
        del trail.kept[:], observer.observed[:]
        await vault.reveal_many(token_ids, caller=CALLER)
        assert [(one.token_id, one.outcome) for one in trail.kept] == list(
            zip(token_ids, ["success", "success", "token_not_found"], strict=True)
        )
        assert observer.observed == trail.kept
        trail.refuses = True
        with pytest.raises(AuditUnavailable):
            await vault.reveal_many(token_ids, caller=CALLER)
    assert {(one.outcome, one.revealed) for one in observer.observed[3:]} == {("audit_unavailable", ())}


async def test_a_batch_that_fails_unexpectedly_leaves_the_events_so_far(tmp_path: Path) -> None:
    trail, accepted = _Trail(), list[RevealedToken]()

    def accept(revealed: RevealedToken) -> None:
        if accepted:
            raise RuntimeError
        accepted.append(revealed)

    async with _opened(tmp_path, trail, _Observer()) as vault:
        token_ids = await _stored(vault, 3)
        del trail.kept[:]
        with pytest.raises(RuntimeError):
            await vault.reveal_many(token_ids, caller=CALLER, accept=accept)
    assert [(one.token_id, one.outcome) for one in trail.kept] == list(
        zip(token_ids[:2], ["success", "internal"], strict=True)
    )


async def test_a_success_is_returned_only_after_its_event_is_durable(tmp_path: Path) -> None:
    trail, observer, token_id = _Trail(waits=asyncio.Event()), _Observer(), TokenId(str(uuid4()), "google")
    async with _opened(tmp_path, trail, observer) as vault:
        storing = asyncio.create_task(
            vault.store(token_id, TokenInput(access_token=SecretStr("secret")), caller=CALLER)
        )
        await asyncio.sleep(0.2)
        assert not storing.done()
        assert observer.observed == []
        assert trail.waits is not None
        trail.waits.set()
        await storing
    assert [event.outcome for event in observer.observed] == ["success"]


async def test_a_cancelled_task_ends_even_if_its_event_is_refused(tmp_path: Path) -> None:
    written = asyncio.Event()
    trail, observer, token_id = _Trail(waits=written), _Observer(), TokenId(str(uuid4()), "google")
    async with _opened(tmp_path, trail, observer) as vault:
        storing = asyncio.create_task(
            vault.store(token_id, TokenInput(access_token=SecretStr("secret")), caller=CALLER)
        )
        await asyncio.sleep(0)
        storing.cancel()
        trail.refuses = True
        written.set()
        with pytest.raises(asyncio.CancelledError):
            await storing
    assert [event.outcome for event in observer.observed] == ["audit_unavailable"]


async def test_the_current_service_is_reset_after_an_operation(tmp_path: Path) -> None:
    token_id = TokenId(str(uuid4()), "google")
    async with _opened(tmp_path, _Trail(), _Observer()) as vault:
        await vault.store(token_id, TokenInput(access_token=SecretStr("secret")), caller=CALLER)
        assert current_service.get() == NO_SERVICE
        with pytest.raises(TokenNotFound):
            await vault.reveal(TokenId(str(uuid4()), "google"), caller=CALLER)
        assert current_service.get() == NO_SERVICE
