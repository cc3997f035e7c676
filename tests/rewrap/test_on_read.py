"""Rewrap on read: once for each token, bounded, and never against a concurrent write."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import pytest
from pydantic import SecretStr

from app.rewrap.on_read import MAXIMUM_WAITING, WORKERS, RewrapOnRead
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvent, TokenEvents
from app.tokens.models import NO_SERVICE, Caller, StoredToken, TokenInput, current_service
from app.tokens.repository import TokenRepository
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault
from tests.support.rewrap.stored_rows import (
    SqliteRows,
    access_of,
    broken_rows,
    local_encryption,
    rows_under_first,
)
from tests.support.rewrap.sweeps import sweep
from tests.support.stores.pausing import pausing
from tests.support.stores.stores import rows_by_id
from tests.support.waiting import eventually_async

CALLER: Final = Caller("tests")
WRITE: Final = "replace_ciphertexts"


@dataclass(slots=True)
class RecordedEvents:
    events: list[TokenEvent] = field(default_factory=list)

    def record(self, event: TokenEvent) -> None:
        self.events.append(event)

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        self.events.extend(events)


@dataclass(slots=True)
class Bench:
    """A store of old tokens, their rewrap on read, and a gate before and after each of its writes."""

    rows: SqliteRows
    tokens: TokenRepository
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Counter[str] = field(default_factory=Counter)
    recorded: RecordedEvents = field(default_factory=RecordedEvents)
    waits_at_gate: int = 0
    wrote_for: set[str] = field(default_factory=set)

    def on_read(self) -> RewrapOnRead:
        return RewrapOnRead(
            tokens=pausing(self.tokens, self._at_gate, calls=self.calls, only=WRITE),
            cipher=TokenCipher(encryption=local_encryption(2)),
            events=TokenEvents(audit=NoAuditTrail(), observers=[self.recorded]),
            delay_seconds=0,
        )

    def vault(self, on_read: RewrapOnRead, tokens: TokenRepository | None = None) -> TokenVault:
        return TokenVault(
            tokens=tokens or self.tokens,
            cipher=TokenCipher(encryption=local_encryption(2)),
            events=TokenEvents(audit=NoAuditTrail()),
            on_reveal=on_read.offer,
        )

    async def insert(self, count: int) -> list[StoredToken]:
        """Insert tokens under the old key, and return them as a reader sees them."""
        rows = rows_under_first(count)
        self.rows.insert(rows)
        return list((await rows_by_id(self.tokens, [row["id"] for row in rows])).values())

    async def now(self, token: StoredToken) -> StoredToken | None:
        return (await rows_by_id(self.tokens, [token.id])).get(token.id)

    def rewrapped(self) -> int:
        return self.rows.count("local:v2")

    async def _at_gate(self) -> None:
        self.waits_at_gate += 1
        self.wrote_for.add(current_service.get())
        await self.gate.wait()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    rows = SqliteRows(tmp_path / "vault.db")
    tokens = SqliteRepository(path=rows.path)
    bench = Bench(rows, tokens)
    bench.gate.set()
    yield bench
    await tokens.close()


async def test_a_read_token_is_rewrapped_once_with_one_audit_event(bench: Bench) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    for _ in range(50):
        on_read.offer(token)
    await eventually_async(lambda: bool(bench.recorded.events))
    on_read.offer(token)  # a reader that read the old row
    after = await bench.now(token)
    assert after is not None
    on_read.offer(after)
    await asyncio.sleep(0.05)
    await on_read.close()
    assert (bench.calls[WRITE], bench.rewrapped()) == (1, 1)
    assert after == replace(
        token,
        access_ciphertext=after.access_ciphertext,
        refresh_ciphertext=after.refresh_ciphertext,
        encryption_scheme="local:v2",
        encryption_method="aes256-gcm-v2",
    )
    [event] = bench.recorded.events
    assert (event.outcome, event.scheme, event.token_id) == ("success", "local:v2", token.token_id)


async def test_readers_do_not_wait_for_the_rewrap_of_a_blocked_store(bench: Bench) -> None:
    tokens = await bench.insert(20)
    on_read = bench.on_read()
    vault = bench.vault(on_read)
    bench.gate.clear()
    for token in tokens:
        async with asyncio.timeout(30):
            revealed = await vault.reveal(token.token_id, caller=CALLER)
        assert revealed.access_token.get_secret_value() == access_of(token.id)
    await eventually_async(lambda: bench.waits_at_gate == WORKERS)
    assert bench.rewrapped() == 0
    bench.gate.set()
    await eventually_async(lambda: bench.rewrapped() == 20)
    await on_read.close()


async def test_the_rewrap_runs_for_no_calling_service(bench: Bench) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    await bench.vault(on_read).reveal(token.token_id, caller=CALLER)
    await eventually_async(lambda: bench.rewrapped() == 1)
    await on_read.close()
    assert bench.wrote_for == {NO_SERVICE}


async def test_a_full_queue_drops_tokens_until_they_are_read_again(bench: Bench) -> None:
    tokens = await bench.insert(MAXIMUM_WAITING + WORKERS + 200)
    on_read = bench.on_read()
    bench.gate.clear()
    for token in tokens[:WORKERS]:
        on_read.offer(token)
    await eventually_async(lambda: bench.waits_at_gate == WORKERS)
    for token in tokens[WORKERS:]:
        on_read.offer(token)
    await asyncio.sleep(0.02)
    assert bench.waits_at_gate == WORKERS, "no more writes at once"
    bench.gate.set()
    await eventually_async(lambda: len(bench.recorded.events) == MAXIMUM_WAITING + WORKERS)
    await asyncio.sleep(0.02)
    assert bench.rewrapped() == MAXIMUM_WAITING + WORKERS
    for token in tokens:
        on_read.offer(token)
    await eventually_async(lambda: bench.rewrapped() == len(tokens))
    await on_read.close()
    assert bench.calls[WRITE] == len(tokens), "one write each"


async def _rotate(bench: Bench, token: StoredToken) -> None:
    await bench.vault(bench.on_read()).rotate(
        token.token_id, TokenInput(access_token=SecretStr("newer")), caller=CALLER
    )


async def _delete(bench: Bench, token: StoredToken) -> None:
    await bench.vault(bench.on_read()).delete(token.token_id, caller=CALLER)


@pytest.mark.parametrize("write", [_rotate, _delete])
async def test_a_concurrent_write_wins_and_the_rewrap_leaves_no_event(
    bench: Bench, write: Callable[[Bench, StoredToken], Awaitable[None]]
) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    bench.gate.clear()
    on_read.offer(token)
    await eventually_async(lambda: bench.waits_at_gate == 1)
    await write(bench, token)
    written = await bench.now(token)
    bench.gate.set()
    await on_read.close()
    assert bench.calls[WRITE] == 1
    assert await bench.now(token) == written
    assert bench.recorded.events == []
    if write is _rotate:
        revealed = await bench.vault(on_read).reveal(token.token_id, caller=CALLER)
        assert (revealed.access_token.get_secret_value(), revealed.token.version) == ("newer", 2)


async def test_a_rotation_that_read_the_old_row_is_not_lost(bench: Bench) -> None:
    """The rotation starts over on the rewrapped row."""
    [token] = await bench.insert(1)
    on_read, held, waiting = bench.on_read(), asyncio.Event(), asyncio.Event()

    async def at_replace() -> None:
        waiting.set()
        await held.wait()

    vault = bench.vault(on_read, pausing(bench.tokens, at_replace, only="replace"))
    rotating = asyncio.create_task(
        vault.rotate(token.token_id, TokenInput(access_token=SecretStr("newer")), caller=CALLER)
    )
    await waiting.wait()
    on_read.offer(token)
    await eventually_async(lambda: bench.rewrapped() == 1)
    held.set()
    rotated = await rotating
    await on_read.close()
    assert rotated.version == 2
    revealed = await bench.vault(on_read).reveal(
        token.token_id, caller=CALLER, options=RevealOptions(include_refresh=True)
    )
    assert revealed.access_token.get_secret_value() == "newer"
    assert revealed.refresh_token is not None
    assert revealed.token.encryption_scheme == "local:v2"


async def test_sweeps_and_readers_at_once_rewrap_each_token_once(bench: Bench) -> None:
    tokens = await bench.insert(400)
    on_read = bench.on_read()
    vault = bench.vault(on_read)

    async def read() -> None:
        for token in tokens:
            revealed = await vault.reveal(token.token_id, caller=CALLER)
            assert revealed.access_token.get_secret_value() == access_of(token.id)
            await asyncio.sleep(0)

    sweeps = [sweep(bench.tokens, local_encryption(2)) for _ in range(2)]
    *reports, _, _ = await asyncio.gather(*(one.run() for one in sweeps), read(), read())
    await on_read.close()
    assert bench.rewrapped() == 400
    assert sum(report.rewrapped for report in reports if report) + len(bench.recorded.events) == 400
    assert {row["version"] for row in bench.rows.rows().values()} == {1}


async def test_an_unreadable_token_is_tried_and_audited_once(bench: Bench) -> None:
    broken = broken_rows()
    bench.rows.insert(broken.values())
    before = bench.rows.rows()
    on_read = bench.on_read()
    for _ in range(3):
        for token in (await rows_by_id(bench.tokens, [row["id"] for row in broken.values()])).values():
            on_read.offer(token)
        await asyncio.sleep(0.05)
    await eventually_async(lambda: len(bench.recorded.events) == 4)
    await on_read.close()
    assert sorted(event.outcome for event in bench.recorded.events) == sorted(
        ["integrity", "integrity", "key_denied", "malformed_ciphertext"]
    )
    assert bench.rows.rows() == before
    assert bench.calls[WRITE] == 0


async def test_closing_finishes_the_running_writes_and_drops_the_rest(bench: Bench) -> None:
    tokens = await bench.insert(10)
    on_read = bench.on_read()
    bench.gate.clear()
    for token in tokens:
        on_read.offer(token)
    await eventually_async(lambda: bench.waits_at_gate == WORKERS)
    closing = asyncio.create_task(on_read.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    bench.gate.set()
    await closing
    assert bench.rewrapped() == len(bench.recorded.events) == WORKERS
