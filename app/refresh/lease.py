"""The lease of a token's row, which permits one replica at a time to ask the provider about the token."""

from __future__ import annotations

import sys
import time
from uuid import uuid4

from app.errors import StoreError
from app.tokens.models import REVOCATION_VERSION, StoredToken
from app.tokens.repository import TokenRepository


def lease_clock() -> float:
    """Return seconds that also pass while the machine sleeps; on Linux they do not for `time.monotonic`."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.monotonic()


def revocation_holder() -> str:
    """Return a new holder that shows, if its process dies, that no answer of a refresh was lost."""
    text = str(uuid4())
    return text[:14] + REVOCATION_VERSION + text[15:]


async def take_lease(tokens: TokenRepository, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
    """Claim the row for `holder`, a new UUID; return whether it was claimed. A lost answer is read back."""
    try:
        return await tokens.claim_refresh(token, holder=holder, lease_seconds=lease_seconds)
    except StoreError as error:
        if not error.retryable:
            raise
        row = (await tokens.read_back([token.id])).get(token.id)
        if isinstance(row, StoredToken) and row.refresh_state.holder == holder:
            return True
        raise


def has_the_same_lease(row: StoredToken, claimed: StoredToken) -> bool:
    """Whether the row is still under the lease of `claimed`, so that no secret was written since."""
    lease, own = row.refresh_state, claimed.refresh_state
    return (row.id, lease.generation, lease.holder) == (claimed.id, own.generation, own.holder)
