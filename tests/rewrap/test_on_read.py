"""A token that was read under an old key moves behind its reader's back: once, bounded, and never against a write."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
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
from app.tokens.vault import TokenVault
from tests.support.rewrap.stored_rows import SqliteRows, access_of, broken_rows, local_encryption, sealed_row
from tests.support.rewrap.sweeps import sweep
from tests.support.stores.pausing import pausing

CALLER: Final = Caller("tests")
WRITE: Final = "replace_ciphertexts"


@dataclass(slots=True)
class Recorded:
    events: list[TokenEvent] = field(default_factory=list)

    def record(self, event: TokenEvent) -> None:
        self.events.append(event)


@dataclass(slots=True)
class Bench:
    """A store of old tokens, what moves them on read, and a gate before and after each of its writes."""

    rows: SqliteRows
    tokens: TokenRepository
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    calls: Counter[str] = field(default_factory=Counter)
    recorded: Recorded = field(default_factory=Recorded)
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
        """Put in tokens under the old key, and return them as a reader sees them."""
        rows = [sealed_row(local_encryption(1)) for _ in range(count)]
        self.rows.insert(rows)
        return list((await self.tokens.get_rows([row["id"] for row in rows])).values())

    async def now(self, token: StoredToken) -> StoredToken | None:
        return (await self.tokens.get_rows([token.id])).get(token.id)

    def moved(self) -> int:
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


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    pytest.fail("it never came to pass")


async def test_it_moves_once_and_leaves_one_record(bench: Bench) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    for _ in range(50):
        on_read.offer(token)
    await _until(lambda: bool(bench.recorded.events))
    on_read.offer(token)  # a reader that had read the old row
    after = await bench.now(token)
    assert after is not None
    on_read.offer(after)
    await asyncio.sleep(0.05)
    await on_read.close()
    assert (bench.calls[WRITE], bench.moved()) == (1, 1)
    assert after == replace(
        token,
        access_ciphertext=after.access_ciphertext,
        refresh_ciphertext=after.refresh_ciphertext,
        encryption_scheme="local:v2",
        encryption_method="aes256-gcm-v2",
    )
    [event] = bench.recorded.events
    assert (event.outcome, event.scheme, event.token_id) == ("success", "local:v2", token.token_id)


async def test_a_reader_does_not_wait_for_it_nor_for_a_store_that_takes_no_write(bench: Bench) -> None:
    tokens = await bench.insert(20)
    on_read = bench.on_read()
    vault = bench.vault(on_read)
    bench.gate.clear()
    for token in tokens:
        async with asyncio.timeout(2):
            revealed = await vault.reveal(token.token_id, caller=CALLER)
        assert revealed.access_token.get_secret_value() == access_of(token.id)
    await _until(lambda: bench.waits_at_gate == WORKERS)
    assert bench.moved() == 0
    bench.gate.set()
    await _until(lambda: bench.moved() == 20)
    await on_read.close()


async def test_it_works_for_all_and_not_in_the_turns_of_the_service_that_has_read(bench: Bench) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    await bench.vault(on_read).reveal(token.token_id, caller=CALLER)
    await _until(lambda: bench.moved() == 1)
    await on_read.close()
    assert bench.wrote_for == {NO_SERVICE}


async def test_no_more_than_so_many_wait_and_the_others_are_forgotten_until_they_are_read_again(bench: Bench) -> None:
    tokens = await bench.insert(MAXIMUM_WAITING + WORKERS + 200)
    on_read = bench.on_read()
    bench.gate.clear()
    for token in tokens[:WORKERS]:
        on_read.offer(token)
    await _until(lambda: bench.waits_at_gate == WORKERS)
    for token in tokens[WORKERS:]:
        on_read.offer(token)
    await asyncio.sleep(0.02)
    assert bench.waits_at_gate == WORKERS, "so many are written at once, and no more"
    bench.gate.set()
    await _until(lambda: len(bench.recorded.events) == MAXIMUM_WAITING + WORKERS)
    await asyncio.sleep(0.02)
    assert bench.moved() == MAXIMUM_WAITING + WORKERS
    for token in tokens:
        on_read.offer(token)
    await _until(lambda: bench.moved() == len(tokens))
    await on_read.close()
    assert bench.calls[WRITE] == len(tokens), "each once"


async def _rotate(bench: Bench, token: StoredToken) -> None:
    await bench.vault(bench.on_read()).rotate(
        token.token_id, TokenInput(access_token=SecretStr("newer")), caller=CALLER
    )


async def _delete(bench: Bench, token: StoredToken) -> None:
    await bench.vault(bench.on_read()).delete(token.token_id, caller=CALLER)


@pytest.mark.parametrize("write", [_rotate, _delete])
async def test_a_write_that_comes_between_stays_and_leaves_no_record_of_a_rewrap(
    bench: Bench, write: Callable[[Bench, StoredToken], Awaitable[None]]
) -> None:
    [token] = await bench.insert(1)
    on_read = bench.on_read()
    bench.gate.clear()
    on_read.offer(token)
    await _until(lambda: bench.waits_at_gate == 1)
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


async def test_a_write_that_has_read_the_row_before_is_not_lost_to_it(bench: Bench) -> None:
    """The rewrap takes nothing away from the rotation: that starts over on the row as it is now."""
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
    await _until(lambda: bench.moved() == 1)
    held.set()
    rotated = await rotating
    await on_read.close()
    assert rotated.version == 2
    revealed = await bench.vault(on_read).reveal(token.token_id, caller=CALLER, include_refresh=True)
    assert revealed.access_token.get_secret_value() == "newer"
    assert revealed.refresh_token is not None
    assert revealed.token.encryption_scheme == "local:v2"


async def test_sweeps_and_readers_at_once_move_each_token_once(bench: Bench) -> None:
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
    assert bench.moved() == 400
    assert sum(report.rewrapped for report in reports if report) + len(bench.recorded.events) == 400
    assert {row["version"] for row in bench.rows.rows().values()} == {1}


async def test_what_cannot_be_read_is_tried_and_recorded_once(bench: Bench) -> None:
    broken = broken_rows()
    bench.rows.insert(broken.values())
    before = bench.rows.rows()
    on_read = bench.on_read()
    for _ in range(3):
        for token in (await bench.tokens.get_rows([row["id"] for row in broken.values()])).values():
            on_read.offer(token)
        await asyncio.sleep(0.05)
    await _until(lambda: len(bench.recorded.events) == 4)
    await on_read.close()
    assert sorted(event.outcome for event in bench.recorded.events) == sorted(
        ["integrity", "integrity", "key_denied", "malformed_ciphertext"]
    )
    assert bench.rows.rows() == before
    assert bench.calls[WRITE] == 0


async def test_closing_finishes_what_is_being_written_and_forgets_the_rest(bench: Bench) -> None:
    tokens = await bench.insert(10)
    on_read = bench.on_read()
    bench.gate.clear()
    for token in tokens:
        on_read.offer(token)
    await _until(lambda: bench.waits_at_gate == WORKERS)
    closing = asyncio.create_task(on_read.close())
    await asyncio.sleep(0.02)
    assert not closing.done()
    bench.gate.set()
    await closing
    assert bench.moved() == len(bench.recorded.events) == WORKERS
