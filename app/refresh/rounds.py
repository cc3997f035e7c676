"""Rounds: each looks for the due tokens of one provider's name and refreshes them, a few at a time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

import structlog

from app.errors import InternalError, ProviderError, StoreError, VaultError
from app.refresh.observer import RefreshObserver, Unobserved
from app.refresh.presets import ALIASES
from app.refresh.providers import OAuthProvider
from app.refresh.refresher import TokenRefresher
from app.refresh.registry import ProviderRegistry
from app.refresh.request_rate import RequestRate
from app.tokens.due_tokens import DueBy, DueTokens
from app.tokens.freshness import NotRefreshableError, freshness_of
from app.tokens.models import Caller, RefreshState, StoredToken, TokenStatus
from app.tokens.repository import TokenRepository

PAGE_ROWS: Final = 200
CONCURRENT: Final = 8
CONCURRENT_FAILED: Final = 2  # of tokens whose last refresh failed: they may take the whole time limit again
_REFRESH_SECONDS: Final = 30.0
_SKIPPED_SECONDS: Final = 3_600.0
_MAXIMUM_SKIPPED: Final = 10_000
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """A token is due if it would not live for `min_ttl_seconds`, by default its provider's margin, in `lead_seconds`.

    With `failed` the round takes the tokens whose last refresh failed, otherwise the others. A dry run only counts.
    """

    lead_seconds: float
    min_ttl_seconds: int | None = None
    failed: bool = False
    dry_run: bool = False

    def lead_of(self, provider: OAuthProvider) -> timedelta:
        return timedelta(seconds=0 if provider.invalidates_old_access_token else self.lead_seconds)

    def margin_of(self, provider: OAuthProvider) -> timedelta:
        if provider.invalidates_old_access_token:
            return timedelta(0)
        margin = provider.refresh_margin_seconds if self.min_ttl_seconds is None else self.min_ttl_seconds
        return timedelta(seconds=margin)


@dataclass(slots=True)
class RoundReport:
    """Counts of one round. `failed` counts by error code, also tokens that were not tried because their host is paused.

    `overtaken` counts tokens that somebody else changed or refreshed, `api_tokens` those that no provider refreshes.
    `paused` is the error that concerns every token of the provider and ended the round.
    """

    due: int = 0
    refreshed: int = 0
    overtaken: int = 0
    api_tokens: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    paused: ProviderError | None = None


@dataclass(frozen=True, slots=True)
class _Skipped:
    """A token that cannot be refreshed until its row or its provider's entry changes, as far as this process knows."""

    version: int
    state: RefreshState
    provider: OAuthProvider
    until: float


class RefreshRounds:
    """Refreshes due tokens of one provider's name in each round; any number of rounds and replicas may run at once.

    Of the tokens with an expiry the first to expire come first, within `page_rows`; within those each replica has an
    order of its own, so that replicas divide them. All names of one entry of the registry share its rate and at most
    `CONCURRENT` requests at once, and tokens whose last refresh failed have `CONCURRENT_FAILED` of their own: tokens
    that always fail delay no others. A round looks at what was due when it began, and takes no token twice.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        refresher: TokenRefresher,
        providers: ProviderRegistry,
        caller: Caller,
        observer: RefreshObserver | None = None,
        page_rows: int = PAGE_ROWS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._tokens = tokens
        self._refresher = refresher
        self._providers = providers
        self._caller = caller
        self._observer = observer or Unobserved()
        self._page_rows = page_rows
        self._now = now
        self._rate = RequestRate()
        self._places: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._skipped: dict[str, _Skipped] = {}
        self._overdue_seconds: dict[tuple[str, str], float] = {}
        self._stopped = False

    def stop(self) -> None:
        """Begin no more refreshes; each round ends, and has counted them, once those in progress have ended."""
        self._stopped = True

    def names(self) -> list[str]:
        """Return the providers' names that tokens are stored under, aliases included."""
        return [name for name in sorted({*self._providers.names(), *ALIASES}) if self._providers.find(name) is not None]

    async def run(self, name: str, plan: RoundPlan, report: RoundReport) -> None:
        """Refresh what is due, and count it in `report`; raises a `StoreError` if the store fails.

        The end of this call by a cancellation begins no more refreshes; those in progress are the refresher's.
        """
        running: set[asyncio.Task[None]] = set()
        try:
            async with aclosing(self._due(name, plan)) as due:
                async for provider, token in due:
                    report.due += 1
                    if plan.dry_run:
                        continue
                    places = self._places_of(provider, failed=plan.failed)
                    pause = self._refresher.pause_of(provider, token.base_url)
                    if pause is None:  # a paused token takes no turn from the others
                        await self._rate.turn(provider)
                        await places.acquire()
                        pause = self._refresher.pause_of(provider, token.base_url)
                        if pause is not None:
                            places.release()
                    if pause is not None:
                        if provider.uses_base_url:  # it concerns one host, and the next token may have another
                            report.failed[pause.code] += 1
                            continue
                        report.paused = pause
                        return
                    task = asyncio.create_task(self._refresh(provider, token, report))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    task.add_done_callback(partial(_give_back, places))
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            raise
        finally:
            if running:
                await asyncio.wait(set(running))

    async def _due(self, name: str, plan: RoundPlan) -> AsyncGenerator[tuple[OAuthProvider, StoredToken]]:
        now = self._now()  # of the whole round: with a later one, what it has refreshed could be due again
        for by in DueBy:
            position = None
            while (provider := self._providers.find(name)) is not None:
                before = _before(provider, by, plan, now)
                if before is None:
                    break
                query = DueTokens(provider=name, by=by, before=before, now=now, failed=plan.failed)
                page = await self._tokens.due_for_refresh(query, after=position, limit=self._page_rows)
                wanted = [token for token in page.tokens if self._is_wanted(provider, token, by, plan, now)]
                if by is DueBy.EXPIRY and position is None and not plan.failed:
                    self._observe(provider, name, next((token.expires_at for token in wanted), None))
                random.shuffle(wanted)
                for token in wanted:
                    if self._stopped:
                        return
                    yield provider, token
                position = page.next
                if position is None:
                    break

    def _is_wanted(
        self, provider: OAuthProvider, token: StoredToken, by: DueBy, plan: RoundPlan, now: datetime
    ) -> bool:
        skipped = self._skipped.get(token.id)
        if skipped is not None:
            same = (skipped.version, skipped.state, skipped.provider) == (token.version, token.refresh_state, provider)
            if same and asyncio.get_running_loop().time() < skipped.until:
                return False
            del self._skipped[token.id]
        if token.status is not TokenStatus.OK:
            return False
        if token.last_refreshed is not None and token.last_refreshed > now:  # perhaps by this round
            return False
        lives = freshness_of(
            token, provider, min_ttl_seconds=plan.min_ttl_seconds, now=now + plan.lead_of(provider)
        ).is_met
        return lives if by is DueBy.IDLE else not lives  # an idle token that does not live was found before

    def _observe(self, provider: OAuthProvider, name: str, first_expiry: datetime | None) -> None:
        """Report how long ago the oldest due token of the entry was to be refreshed; each of its names has a round."""
        late = 0.0
        if first_expiry is not None:
            late = max(0.0, (self._now() - first_expiry).total_seconds() + provider.refresh_margin_seconds)
        self._overdue_seconds[provider.name, name] = late
        of_entry = (seconds for (entry, _), seconds in self._overdue_seconds.items() if entry == provider.name)
        self._observer.overdue(provider.name, max(of_entry))

    def _places_of(self, provider: OAuthProvider, *, failed: bool) -> asyncio.Semaphore:
        key = provider.name, failed
        if key not in self._places:
            self._places[key] = asyncio.Semaphore(CONCURRENT_FAILED if failed else CONCURRENT)
        return self._places[key]

    async def _refresh(self, provider: OAuthProvider, token: StoredToken, report: RoundReport) -> None:
        if self._stopped:
            return
        try:
            # another replica may have refreshed it since the page was read
            current = await self._tokens.get(token.token_id)
            if not isinstance(current, StoredToken) or _differs(current, token):
                report.overtaken += 1
                return
            until = asyncio.get_running_loop().time() + _REFRESH_SECONDS
            await self._refresher.refresh(current, caller=self._caller, until=until)
        except NotRefreshableError:
            report.api_tokens += 1
            self._skip(provider, token)
        except VaultError as error:  # its event and its row say why
            report.failed[error.code] += 1
            permanent = not error.retryable and not isinstance(error, StoreError)
            if permanent and self._refresher.pause_of(provider, token.base_url) is None:
                self._skip(provider, token)
        except Exception as error:  # noqa: BLE001  the others must still be refreshed
            report.failed[InternalError.code] += 1
            _log.error("background_refresh_failed", provider=provider.name, exc_info=error)
        else:
            report.refreshed += 1

    def _skip(self, provider: OAuthProvider, token: StoredToken) -> None:
        """Leave the token out for an hour, unless it changes: nothing is written to a row that cannot be decrypted."""
        if len(self._skipped) >= _MAXIMUM_SKIPPED:
            self._skipped.clear()
        until = asyncio.get_running_loop().time() + _SKIPPED_SECONDS
        self._skipped[token.id] = _Skipped(token.version, token.refresh_state, provider, until)


def _before(provider: OAuthProvider, by: DueBy, plan: RoundPlan, now: datetime) -> datetime | None:
    """Return the time before which a token's expiry or last refresh makes it due; `None` if nothing does."""
    if by is DueBy.IDLE:
        if provider.idle_days is None or provider.invalidates_old_access_token:
            return None
        return now - timedelta(days=provider.idle_days) / 2
    before = now + plan.lead_of(provider) + plan.margin_of(provider)
    return before if by is DueBy.EXPIRY else before - timedelta(seconds=provider.default_lifetime_seconds)


def _differs(current: StoredToken, token: StoredToken) -> bool:
    return (current.id, current.version, current.refresh_state) != (token.id, token.version, token.refresh_state)


def _give_back(places: asyncio.Semaphore, _: asyncio.Task[None]) -> None:
    places.release()
