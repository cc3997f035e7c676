"""Rewraps tokens that were just read under an old key, behind the reader's back."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Final

from app.errors import AuditUnavailable, StoreTimeout, VaultError
from app.tokens.cipher import TokenCipher
from app.tokens.events import SUCCESS, TokenEvents
from app.tokens.models import NO_SERVICE, Caller, StoredToken, current_service
from app.tokens.repository import TokenRepository
from app.tokens.row_rewrap import rewrap_event, rewrapped, write_rewrap

MAXIMUM_WAITING: Final = 1_000
WORKERS: Final = 2
DELAY_SECONDS: Final = 0.05
DEADLINE_SECONDS: Final = 5.0
AGAIN_AFTER_SECONDS: Final = 300.0
_REMEMBERED: Final = 10_000
CALLER: Final = Caller("rewrap-on-read")


class RewrapOnRead:
    """Takes tokens whose scheme is not the primary's and moves each once, a moment later.

    A reader never waits for it: `offer` only puts the row into a queue, and where that is full it forgets the row,
    since the next read or a sweep will come by. The write holds only for the row that was read, so a concurrent write
    wins. What did not work is not tried again for five minutes.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        delay_seconds: float = DELAY_SECONDS,
    ) -> None:
        self._delay_seconds = delay_seconds
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._waiting: deque[StoredToken] = deque()
        self._offered: OrderedDict[str, float] = OrderedDict()
        self._workers: set[asyncio.Task[None]] = set()

    def offer(self, token: StoredToken) -> None:
        """Note a token that was just read; returns at once and raises nothing."""
        primary = self._cipher.primary_scheme
        if primary is None or token.encryption_scheme == primary or not self._remember(token.id):
            return  # without the primary's scheme the token may be under it
        self._waiting.append(token)
        if len(self._workers) < WORKERS:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def close(self) -> None:
        """Finish the write that is under way, and forget the rest."""
        self._waiting.clear()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _remember(self, row_id: str) -> bool:
        """Return whether the row is new to us and there is room for it."""
        now = time.monotonic()
        last = self._offered.get(row_id)
        if len(self._waiting) >= MAXIMUM_WAITING or (last is not None and now - last < AGAIN_AFTER_SECONDS):
            return False
        self._offered[row_id] = now
        self._offered.move_to_end(row_id)
        if len(self._offered) > _REMEMBERED:
            self._offered.popitem(last=False)
        return True

    async def _work(self) -> None:
        current_service.set(NO_SERVICE)  # it began in the context of one reader, and works for all
        await asyncio.sleep(self._delay_seconds)  # the reader's answer goes out first
        while self._waiting:
            await self._rewrap(self._waiting.popleft())

    async def _rewrap(self, token: StoredToken) -> None:
        outcome, detail = SUCCESS, None
        after = token
        try:
            self._events.require_open()
            async with asyncio.timeout(DEADLINE_SECONDS):
                rewrap = await rewrapped(self._cipher, token)
                if rewrap is None or not await write_rewrap(self._tokens, rewrap):
                    return  # it is under the primary already, or somebody else has written it meanwhile
                after = rewrap.after
        except VaultError as error:
            outcome, detail = error.code, error.detail
        except TimeoutError:
            outcome, detail = StoreTimeout.code, "the rewrap took too long; it may or may not have happened"
        with suppress(AuditUnavailable):  # the trail says so itself, and nobody waits for an answer
            await self._events.record(rewrap_event(after, outcome, detail, caller=CALLER))
