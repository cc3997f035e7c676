"""One count for everybody who asks while it is under way."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from app.errors import StoreTimeout

if TYPE_CHECKING:
    from app.tokens.census import CensusLine
    from app.tokens.repository import TokenRepository


class SharedCensus:
    """Counts the rows for callers who cannot wait for long.

    The store reads all of them and does not notice that a caller has left, so whoever asks again waits for the count
    that is under way and does not begin another one.
    """

    def __init__(self, *, tokens: TokenRepository) -> None:
        self._tokens = tokens
        self._counting: asyncio.Future[list[CensusLine]] | None = None

    async def lines(self, *, within_seconds: float) -> list[CensusLine]:
        """Return the lines; raises a `StoreError`, a `StoreTimeout` where the time is too short."""
        if self._counting is None or self._counting.done():
            self._counting = asyncio.ensure_future(self._tokens.census())
            self._counting.add_done_callback(_seen)
        try:
            async with asyncio.timeout(within_seconds):
                return await asyncio.shield(self._counting)
        except TimeoutError:
            message = "the tokens could not be counted in time; `token-vault encryption status` waits longer"
            raise StoreTimeout(message) from None


def _seen(counting: asyncio.Future[list[CensusLine]]) -> None:
    """Look at how it ended, though nobody may have waited: asyncio logs an error that nobody has seen."""
    if not counting.cancelled():
        counting.exception()
