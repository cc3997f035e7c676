"""Concurrent lookups of single tokens, sent to a remote store together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence

from app.errors import InternalError, StoreTimeout, VaultError
from app.tokens.models import StoredToken, TokenId

Waiter = tuple[TokenId, asyncio.Future[StoredToken | None]]


IN_FLIGHT = 4
BATCH_IDS = 25
WAIT_SECONDS = 3.0


class LookupQueue:
    """Lets at most `in_flight` requests run; what comes meanwhile goes into the next one together.

    A lookup that finds a free place is sent at once and alone, so a quiet vault waits for nothing. Under load one
    request serves many callers, and it is requests that cost: the client takes longer over one than PostgreSQL does.
    `fetch` returns those of up to 25 tokens that exist, in any order, and raises a `VaultError` for all of them.
    """

    def __init__(self, *, fetch: Callable[[Sequence[TokenId]], Awaitable[Iterable[StoredToken]]]) -> None:
        self._fetch = fetch
        self._waiting: deque[Waiter] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def get(self, token_id: TokenId) -> StoredToken | None:
        """Return the token or `None`; raises what `fetch` raises, and `StoreTimeout` after three seconds."""
        future: asyncio.Future[StoredToken | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((token_id, future))
        self._dispatch()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await future
        except TimeoutError:
            raise StoreTimeout("the token store did not answer in time") from None

    async def close(self) -> None:
        """Give up what is under way."""
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _dispatch(self) -> None:
        while len(self._running) < IN_FLIGHT and (batch := self._next_batch()):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _next_batch(self) -> list[Waiter]:
        batch: list[Waiter] = []
        while self._waiting and len(batch) < BATCH_IDS:
            waiter = self._waiting.popleft()
            if not waiter[1].done():  # its caller has gone away
                batch.append(waiter)
        return batch

    async def _run(self, batch: list[Waiter]) -> None:
        found: dict[TokenId, StoredToken] | None = None
        failure: VaultError = InternalError("the vault made a mistake; its log has more")
        try:
            found = {token.token_id: token for token in await self._fetch([token_id for token_id, _ in batch])}
        except VaultError as error:
            failure = error
        except asyncio.CancelledError:
            failure = StoreTimeout("the lookup was given up")
            raise
        finally:
            for token_id, future in batch:
                if future.done():
                    continue
                if found is None:
                    # each its own: an exception collects the frames of whoever raises it
                    future.set_exception(type(failure)(failure.detail))
                else:
                    future.set_result(found.get(token_id))

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()
