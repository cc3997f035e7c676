"""Freshness: whether an access token lives long enough for its caller, and the Protocol of what refreshes it."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple, Protocol

from app.tokens.models import Caller, StoredToken

MAXIMUM_MIN_TTL_SECONDS: Final = 24 * 3600
_NO_TIME: Final = timedelta(0)


class RefreshPolicy(Protocol):
    """When the tokens of one provider are refreshed.

    `default_lifetime_seconds` is the lifetime of a token without an expiry. If a refresh invalidates the old access
    token, a token is refreshed only once it has expired: somebody may be using it.
    """

    @property
    def refresh_margin_seconds(self) -> int: ...
    @property
    def default_lifetime_seconds(self) -> int: ...
    @property
    def invalidates_old_access_token(self) -> bool: ...


class NotRefreshableError(Exception):
    """The token cannot be refreshed, which shows only in its plaintexts: it is an API token, stored as both secrets."""


class Refresher(Protocol):
    """Gets new access tokens from providers."""

    def policy_of(self, token: StoredToken) -> RefreshPolicy | None:
        """Return the policy of its provider, or `None` if the token cannot be refreshed."""
        ...

    async def refresh(self, token: StoredToken, *, caller: Caller, until: float) -> None:
        """Refresh the token, or wait for the refresh that is in progress, until a time on the event loop's clock.

        Afterwards its row is newer, or gone. The refresh goes on if the caller leaves. Raises `NotRefreshableError` or
        a `VaultError`: `TokenInactive` if the user must sign in again, `RefreshInProgress` if it takes longer.
        """
        ...


class Freshness(NamedTuple):
    """How long a token must live, and whether it does. `expires_at` is `None` if nothing says when it expires.

    With `waits_for_expiry` a token that does not live long enough is refreshed only once it has expired.
    """

    refreshable: bool
    expires_at: datetime | None
    min_ttl: timedelta
    now: datetime
    waits_for_expiry: bool = False

    @property
    def is_met(self) -> bool:
        return self.expires_at is None or self.expires_at - self.now >= self.min_ttl

    @property
    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= self.now

    @property
    def is_due(self) -> bool:
        """Whether the token is to be refreshed."""
        return self.refreshable and (self.is_expired if self.waits_for_expiry else not self.is_met)


def freshness_of(
    token: StoredToken, policy: RefreshPolicy | None, *, min_ttl_seconds: int | None, now: datetime
) -> Freshness:
    """Return the freshness of a token for a caller that needs it for `min_ttl_seconds`, by default the margin.

    A token that is refreshed only once it has expired has no margin. No caller can ask for more than half of the
    lifetime that the provider gave, so a refreshed token is always fresh.
    """
    if policy is None:
        min_ttl = timedelta(seconds=min_ttl_seconds) if min_ttl_seconds else _NO_TIME
        return Freshness(refreshable=False, expires_at=token.expires_at, min_ttl=min_ttl, now=now)
    expires_at, issued_at = token.expires_at, token.last_refreshed
    if expires_at is None and issued_at is not None:
        with suppress(OverflowError):  # a row may hold any time
            expires_at = issued_at + timedelta(seconds=policy.default_lifetime_seconds)
    waits = policy.invalidates_old_access_token
    margin_seconds = 0 if waits else policy.refresh_margin_seconds
    min_ttl = timedelta(seconds=margin_seconds if min_ttl_seconds is None else min_ttl_seconds)
    if expires_at is not None and issued_at is not None:
        min_ttl = min(min_ttl, max(expires_at - issued_at, _NO_TIME) / 2)
    return Freshness(refreshable=True, expires_at=expires_at, min_ttl=min_ttl, now=now, waits_for_expiry=waits)
