"""Due tokens: which tokens a background refresh asks a store for, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Literal

from app.tokens.models import StoredToken


class DueBy(StrEnum):
    """Why a token is due: it expires, it has no expiry, or its refresh token has not been used for long."""

    EXPIRY = "expiry"
    UNKNOWN_EXPIRY = "unknown_expiry"
    IDLE = "idle"

    @property
    def column(self) -> Literal["expires_at", "last_refreshed"]:
        """The column that is compared and that gives the order."""
        return "expires_at" if self is DueBy.EXPIRY else "last_refreshed"


@dataclass(frozen=True, slots=True, kw_only=True)
class DueTokens:
    """Tokens of one provider whose time in the column of `by` is earlier than `before`.

    Only bound tokens with a refresh token whose status is ok, which nobody refreshes at `now`; with `failed` those
    whose last refresh failed and whose next attempt is due at `now`, otherwise the others.
    """

    provider: str
    by: DueBy
    before: datetime
    now: datetime
    failed: bool = False


@dataclass(frozen=True, slots=True)
class DuePosition:
    """A place in the order: the time of the column as the store writes it, and the row's id."""

    time: str
    row_id: str


@dataclass(frozen=True, slots=True)
class DuePage:
    """Tokens in the order of their column, without rows that do not decode. `next` is `None` at the end."""

    tokens: list[StoredToken]
    next: DuePosition | None
