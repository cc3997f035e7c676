"""Read batching: concurrent reads of single tokens share requests to a remote store."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

from app.errors import InternalError, StoreTimeout, VaultError
from app.tokens.models import TokenId, TokenRow

MAXIMUM_REQUESTS: Final = 4
WAIT_SECONDS: Final = 3.0
_CLOSED: Final = "the read was cancelled because the store was closed"

_Waiter = tuple[TokenId, asyncio.Future[TokenRow | None]]


class ReadBatcher:
    """Runs at most `MAXIMUM_REQUESTS` requests; reads that arrive while all run go into the next one together.

    A read that finds a free slot is sent at once and alone, so a quiet vault adds no delay. Under load one request
    serves many callers, which matters because the client spends more time on a request than PostgreSQL does.
    """

    def __init__(
        self, *, fetch: Callable[[Sequence[TokenId]], Awaitable[Iterable[TokenRow]]], batch_tokens: int
    ) -> None:
        """`fetch` returns those of up to `batch_tokens` tokens that exist, in any order, or raises a `VaultError`."""
        self._fetch = fetch
        self._batch_tokens = batch_tokens
        self._waiting: deque[_Waiter] = deque()
        self._running: set[asyncio.Task[None]] = set()

    async def get(self, token_id: TokenId) -> TokenRow | None:
        """Return the token or `None`; raises the error of `fetch`, and `StoreTimeout` after `WAIT_SECONDS`."""
        future: asyncio.Future[TokenRow | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((token_id, future))
        self._dispatch()
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                return await future
        except TimeoutError:
            raise StoreTimeout("the token store did not answer in time") from None

    async def close(self) -> None:
        """Cancel the running requests; every caller that still waits gets `StoreTimeout`."""
        _settle(list(self._waiting), None, StoreTimeout(_CLOSED))
        self._waiting.clear()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def _dispatch(self) -> None:
        while len(self._running) < MAXIMUM_REQUESTS and (batch := self._next_batch()):
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _next_batch(self) -> list[_Waiter]:
        batch: list[_Waiter] = []
        while self._waiting and len(batch) < self._batch_tokens:
            waiter = self._waiting.popleft()
            if not waiter[1].done():  # done: its caller was cancelled
                batch.append(waiter)
        return batch

    async def _run(self, batch: list[_Waiter]) -> None:
        found: dict[TokenId, TokenRow] | None = None
        failure: VaultError = InternalError("an unexpected error; the log of the vault has more")
        try:
            found = {row.token_id: row for row in await self._fetch([token_id for token_id, _ in batch])}
        except VaultError as error:
            failure = error
        except asyncio.CancelledError:
            failure = StoreTimeout(_CLOSED)
            raise
        finally:
            _settle(batch, found, failure)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()


def _settle(batch: list[_Waiter], found: Mapping[TokenId, TokenRow] | None, failure: VaultError) -> None:
    for token_id, future in batch:
        if future.done():
            continue
        if found is None:
            # one exception per caller: each raise adds frames to its traceback
            future.set_exception(failure.copy())
        else:
            future.set_result(found.get(token_id))
