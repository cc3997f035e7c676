"""The rate of background requests to each provider."""

from __future__ import annotations

import asyncio

from app.refresh.providers import OAuthProvider


class RequestRate:
    """Spaces the requests to each provider evenly, so that none is above its `requests_per_second`.

    Names that stand for the same entry share its rate.
    """

    def __init__(self) -> None:
        self._next_at: dict[str, float] = {}

    async def turn(self, provider: OAuthProvider) -> None:
        """Wait until the provider may get the next request; callers take turns in their order."""
        if provider.requests_per_second is None:
            return
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_at.get(provider.name, now))
        self._next_at[provider.name] = at + 1 / provider.requests_per_second
        await asyncio.sleep(at - now)
