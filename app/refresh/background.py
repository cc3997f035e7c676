"""Background refresh: tokens are refreshed before anybody needs them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from app.concurrency import all_of
from app.errors import VaultError
from app.refresh.observer import RefreshObserver, Unobserved
from app.refresh.presets import ALIASES
from app.refresh.providers import OAuthProvider
from app.refresh.refresher import TokenRefresher
from app.refresh.registry import ProviderRegistry
from app.tokens.freshness import NotRefreshableError, RefreshPolicy, freshness_of
from app.tokens.models import Caller, StoredToken
from app.tokens.repository import TokenRepository

BACKGROUND_SERVICE: Final = "background-refresh"
PAGE_ROWS: Final = 200
CONCURRENT_PER_PROVIDER: Final = 4
_REFRESH_SECONDS: Final = 30.0
_log = structlog.get_logger()


class BackgroundRefresh:
    """Refreshes due tokens every `interval_seconds`, plus or minus 20 %, on any number of replicas.

    The providers have equal shares, whatever their numbers of tokens, and each has at most `CONCURRENT_PER_PROVIDER`
    requests at once. Of each `page_rows` tokens those that expire first come first. A token whose refresh failed is
    left out until its next attempt is due, so tokens that always fail delay no others.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        refresher: TokenRefresher,
        providers: ProviderRegistry,
        interval_seconds: float,
        observer: RefreshObserver | None = None,
        page_rows: int = PAGE_ROWS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._tokens = tokens
        self._refresher = refresher
        self._providers = providers
        self._interval_seconds = interval_seconds
        self._observer = observer or Unobserved()
        self._overdue_seconds: dict[str, float] = {}
        self._page_rows = page_rows
        self._now = now
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; the first round starts after one interval."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Begin no more refreshes; those in progress are the refresher's."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def run_once(self) -> int:
        """Refresh every token that is due; return how many were refreshed."""
        names = {*self._providers.names(), *ALIASES}
        self._overdue_seconds = dict.fromkeys(self._providers.names(), 0.0)
        # each to its end: an error must leave no provider's refreshes running without an owner
        refreshed = await all_of(self._refresh_provider(name) for name in sorted(names))
        for name, seconds in self._overdue_seconds.items():
            self._observer.overdue(name, seconds)
        return sum(refreshed)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._interval_seconds * random.uniform(0.8, 1.2))  # noqa: S311  spreads replicas out
            try:
                refreshed = await self.run_once()
            except VaultError as error:
                _log.error("background_refresh_failed", code=error.code, reason=error.detail)
            except Exception as error:  # noqa: BLE001  the next round must still run
                _log.error("background_refresh_failed", exc_info=error)
            else:
                if refreshed:
                    _log.info("refreshed_in_background", refreshed=refreshed)

    async def _refresh_provider(self, name: str) -> int:
        policy = self._providers.find(name)
        if policy is None:
            return 0
        ahead_seconds = int(policy.refresh_margin_seconds + 1.2 * self._interval_seconds)
        if policy.invalidates_old_access_token:
            ahead_seconds = 0
        refreshed, after = 0, None
        while True:
            now = self._now()
            before = now + timedelta(seconds=ahead_seconds)
            page = await self._tokens.due_for_refresh(name, before=before, now=now, after=after, limit=self._page_rows)
            if not page:
                return refreshed
            after = page[-1].id
            due = [
                row
                for row in page
                if isinstance(row, StoredToken) and not _is_fresh(row, policy, ahead_seconds=ahead_seconds, now=now)
            ]
            self._note_overdue(policy, due, now)
            due.sort(key=lambda row: row.expires_at or now)
            refreshed += await self._refresh_all(due)

    def _note_overdue(self, provider: OAuthProvider, due: list[StoredToken], now: datetime) -> None:
        """Note how long the oldest of these has been within the margin; under an alias it is the same provider's."""
        oldest = min((row.expires_at for row in due if row.expires_at is not None), default=None)
        if oldest is not None:
            seconds = (now - oldest).total_seconds() + provider.refresh_margin_seconds
            self._overdue_seconds[provider.name] = max(seconds, self._overdue_seconds.get(provider.name, 0.0))

    async def _refresh_all(self, due: list[StoredToken]) -> int:
        free = asyncio.Semaphore(CONCURRENT_PER_PROVIDER)

        async def refresh(token: StoredToken) -> bool:
            async with free:
                until = asyncio.get_running_loop().time() + _REFRESH_SECONDS
                try:
                    await self._refresher.refresh(token, caller=Caller(BACKGROUND_SERVICE), until=until)
                except (VaultError, NotRefreshableError):
                    return False  # its event and its row say why
                return True

        return sum(await all_of(map(refresh, due)))


def _is_fresh(token: StoredToken, policy: RefreshPolicy, *, ahead_seconds: int, now: datetime) -> bool:
    return freshness_of(token, policy, min_ttl_seconds=ahead_seconds, now=now).is_met
