"""One count for everybody who asks while it is under way."""

from __future__ import annotations

import asyncio

from app.errors import StoreTimeout
from app.tokens.census import CensusRow
from app.tokens.repository import TokenRepository


class SharedCensus:
    """Counts the rows for callers who cannot wait for long.

    The store reads all of them and does not notice that a caller has left, so whoever asks again waits for the count
    that is under way and does not begin another one.
    """

    def __init__(self, *, tokens: TokenRepository) -> None:
        self._tokens = tokens
        self._counting: asyncio.Future[list[CensusRow]] | None = None

    async def lines(self, *, within_seconds: float) -> list[CensusRow]:
        """Return the lines; raises a `StoreError`, a `StoreTimeout` where the time is too short."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.ensure_future(self._tokens.census())
            self._counting.add_done_callback(_seen)
        try:
            async with asyncio.timeout(within_seconds):
                return await asyncio.shield(self._counting)
        except TimeoutError:
            raise StoreTimeout(
                "the tokens could not be counted in time; `token-vault encryption status` waits longer"
            ) from None


def _seen(counting: asyncio.Future[list[CensusRow]]) -> None:
    """Look at how it ended, though nobody may have waited: asyncio logs an error that nobody has seen."""
    if not counting.cancelled():
        counting.exception()
