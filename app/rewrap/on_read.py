"""Rewrap on read: a token that was revealed under an old key is rewrapped after the answer."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from contextlib import suppress
from typing import Final

from app.errors import AuditUnavailable, StoreTimeout, VaultError
from app.tokens.cipher import TokenCipher
from app.tokens.events import SUCCESS, TokenEvents
from app.tokens.legacy_rows import is_legacy
from app.tokens.models import NO_SERVICE, Caller, StoredToken, current_service
from app.tokens.repository import TokenRepository
from app.tokens.row_rewrap import prepare_rewrap, rewrap_event, write_rewrap

MAXIMUM_WAITING: Final = 1_000
WORKERS: Final = 2
DELAY_SECONDS: Final = 0.05
RETRY_AFTER_SECONDS: Final = 300.0
ON_READ_CALLER: Final = Caller("rewrap-on-read")
_ROW_SECONDS: Final = 5.0
_MAXIMUM_OFFERED: Final = 10_000


class RewrapOnRead:
    """Rewraps tokens that readers offer, each at most once in `RETRY_AFTER_SECONDS`.

    A reader never waits: `offer` only fills a queue, and drops the token if the queue is full, because the next read
    or a sweep takes it. The write holds only for the row that was read, so a concurrent write wins.

    A token in PulsePlan's formats stays as it is without `rewrap_legacy`: a read is no reason to make it unreadable to
    PulsePlan's own service.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        rewrap_legacy: bool = False,
        delay_seconds: float = DELAY_SECONDS,
    ) -> None:
        self._rewrap_legacy = rewrap_legacy
        self._delay_seconds = delay_seconds
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._waiting: deque[StoredToken] = deque()
        self._offered: OrderedDict[str, float] = OrderedDict()
        self._workers: set[asyncio.Task[None]] = set()

    def offer(self, token: StoredToken) -> None:
        """Queue a token that was just read; returns at once and raises nothing."""
        primary = self._cipher.primary_scheme
        if primary is None or token.encryption_scheme == primary:
            return  # while the primary's scheme is unknown the token may be under it
        if (is_legacy(token) and not self._rewrap_legacy) or not self._accept(token.id):
            return
        self._waiting.append(token)
        if len(self._workers) < WORKERS:
            worker = asyncio.create_task(self._work())
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)

    async def close(self) -> None:
        """Finish the rewraps that were begun, and drop the rest."""
        self._waiting.clear()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _accept(self, row_id: str) -> bool:
        """Return whether the queue has space and the row was not accepted lately; remember it if so."""
        now = time.monotonic()
        last = self._offered.get(row_id)
        if len(self._waiting) >= MAXIMUM_WAITING or (last is not None and now - last < RETRY_AFTER_SECONDS):
            return False
        self._offered[row_id] = now
        self._offered.move_to_end(row_id)
        if len(self._offered) > _MAXIMUM_OFFERED:
            self._offered.popitem(last=False)
        return True

    async def _work(self) -> None:
        current_service.set(NO_SERVICE)  # the task inherits the context of one reader, and works for all
        await asyncio.sleep(self._delay_seconds)  # the reader's answer goes out first
        while self._waiting:
            await self._rewrap(self._waiting.popleft())

    async def _rewrap(self, token: StoredToken) -> None:
        outcome, detail = SUCCESS, None
        before, after = None, token
        try:
            self._events.require_open()
            async with asyncio.timeout(_ROW_SECONDS):
                rewrap = await prepare_rewrap(self._tokens, self._cipher, token)
                if rewrap is None or not await write_rewrap(self._tokens, rewrap):
                    return  # already under the primary, or overtaken
                before, after = rewrap.before, rewrap.after
        except VaultError as error:
            outcome, detail = error.code, error.detail
        except TimeoutError:
            outcome, detail = StoreTimeout.code, "the rewrap took too long; it may or may not have happened"
        with suppress(AuditUnavailable):  # the audit trail logs its own failure, and no caller waits
            await self._events.record(rewrap_event(after, outcome, detail, caller=ON_READ_CALLER, before=before))
