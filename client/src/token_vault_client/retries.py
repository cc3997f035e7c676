"""Which calls are sent again, and when.

A call is repeated if nothing was done (no connection, `overloaded`, `rate_limited`), or if a repetition has the effect
of one call although the outcome is unknown: reads, a refresh of a rejected version, and a `store` without a condition.
Every other write with an unknown outcome raises, with `outcome_unknown`.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

import httpx

from token_vault_client.errors import VaultError

NOTHING_DONE: Final = frozenset({"overloaded", "rate_limited"})
# raised before any byte of the request has been sent
NOT_SENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_FIRST_PAUSE_SECONDS: Final = 0.2


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """At most `attempts` in all, and none that would start later than `seconds` after the first."""

    attempts: int = 3
    seconds: float = 10.0

    def pause(self, error: VaultError, *, attempt: int, elapsed: float, repeatable: bool) -> float | None:
        """Return the seconds until the next attempt, or `None` if there is none. `attempt` counts from 1.

        Waits as long as the vault asks, or else twice as long each time, and a random part more, so that callers that
        failed together do not come back together.
        """
        if attempt >= self.attempts or not error.retryable or (error.outcome_unknown and not repeatable):
            return None
        base = error.retry_after_seconds
        if base is None:
            base = _FIRST_PAUSE_SECONDS * 2 ** (attempt - 1)
        pause = base * random.uniform(1.0, 1.25)  # noqa: S311  no secret
        return pause if elapsed + pause <= self.seconds else None
