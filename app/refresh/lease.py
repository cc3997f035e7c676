"""The lease of a token's row, which permits one replica at a time to ask the provider about the token."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final
from uuid import uuid4

from app.errors import StoreError
from app.tokens.models import REVOCATION_VERSION, StoredToken
from app.tokens.repository import TokenRepository

# Between the takeover of an expired lease and the second use of a single-use token. Its holder may have the answer, and
# learns from its next write, after a pause and a request that may hang, that an outage of the store is over.
TAKEOVER_SECONDS: Final = 6.0
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0


def lease_clock() -> float:
    """Return seconds that also pass while the machine sleeps; on Linux they do not for `time.monotonic`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def revocation_holder() -> str:
    """Return a new holder that shows, if its process dies, that no answer of a refresh was lost."""
    text = str(uuid4())
    return text[:14] + REVOCATION_VERSION + text[15:]


async def take_lease(
    tokens: TokenRepository,
    token: StoredToken,
    *,
    holder: str,
    lease_seconds: int,
    may_wait: Callable[[], bool] = lambda: False,
) -> bool:
    """Claim the row for `holder`, a new UUID; return whether it was claimed.

    A lost answer is read back, again while the store fails and `may_wait` permits: a claim that its process did not
    know of would keep everybody from the token until the lease ends.
    """
    try:
        return await tokens.claim_refresh(token, holder=holder, lease_seconds=lease_seconds)
    except StoreError as error:
        if not error.retryable:
            raise
        if await _holder_of(tokens, token.id, may_wait) == holder:
            return True
        raise


async def _holder_of(tokens: TokenRepository, row_id: str, may_wait: Callable[[], bool]) -> str | None:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        try:
            row = (await tokens.read_back([row_id])).get(row_id)
        except StoreError as error:
            if not error.retryable or not may_wait():
                raise
        else:
            return row.refresh_state.holder if isinstance(row, StoredToken) else None
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def has_the_same_lease(row: StoredToken, claimed: StoredToken) -> bool:
    """Whether the row is still under the lease of `claimed`, so that no secret was written since."""
    lease, own = row.refresh_state, claimed.refresh_state
    return (row.id, lease.generation, lease.holder) == (claimed.id, own.generation, own.holder)


def under_the_next_lease(claimed: StoredToken, row: StoredToken) -> StoredToken | None:
    """Return `claimed` as if it held the lease of `row`, if that only took the lease over and wrote no secret."""
    old, new = (claimed.access_ciphertext, claimed.refresh_ciphertext), (row.access_ciphertext, row.refresh_ciphertext)
    if old != new or row.refresh_state.holder is None:
        return None
    return replace(claimed, refresh_state=row.refresh_state)
