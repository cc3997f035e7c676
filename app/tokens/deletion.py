"""Deletions: what became of the tokens, and of their secrets at the providers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from app.errors import StoreError, VaultError
from app.tokens import transitions
from app.tokens.models import NO_PRECONDITION, Precondition, TokenRow
from app.tokens.repository import TokenRepository

_LONGEST_WAIT_MILLISECONDS: Final = 20


class RevocationOutcome(StrEnum):
    """What became of one secret at its provider.

    `unsupported`: the provider cannot revoke it. `failed`: it is not revoked. `unknown`: it may or may not be.
    """

    REVOKED = "revoked"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of a token that was to be revoked and deleted; `refresh_token` is `None` if it has none."""

    access_token: RevocationOutcome
    refresh_token: RevocationOutcome | None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class KeptToken:
    """A token that an erasure could not delete, and why."""

    row: TokenRow
    error: VaultError


@dataclass(frozen=True, slots=True)
class Erasure:
    """What became of all of a user's tokens. `receipts` has one for each token if they were to be revoked."""

    deleted: int
    kept: tuple[KeptToken, ...] = ()
    receipts: tuple[tuple[TokenRow, Receipt], ...] = ()

    @property
    def error(self) -> VaultError | None:
        """The error of the tokens that were kept, one that a repetition does not end before the others."""
        return min((one.error for one in self.kept), key=lambda error: error.retryable, default=None)


async def outlast(*rows: TokenRow, now: Callable[[], datetime]) -> None:
    """Wait until a token that is stored from now on gets a higher version than these, which are deleted next.

    That takes a millisecond for a token as young as that. It takes no longer if the clocks of replicas differ.
    """
    ahead = max(row.version for row in rows) - transitions.first_version(now())
    if ahead >= 0:
        await asyncio.sleep(min(ahead + 1, _LONGEST_WAIT_MILLISECONDS) / 1000)


async def delete_row(tokens: TokenRepository, row: TokenRow, precondition: Precondition) -> bool:
    """Delete the row if it still has its version; return whether it is gone.

    If the store's answer is lost, a row that is gone is a success only without a precondition: with one, another
    writer may have changed and deleted the row, and the error is raised.
    """
    try:
        return await tokens.delete(row)
    except StoreError as error:
        if precondition == NO_PRECONDITION and error.retryable and await _is_gone(tokens, row, error):
            return True
        raise


async def _is_gone(tokens: TokenRepository, row: TokenRow, error: StoreError) -> bool:
    """Whether the row no longer exists; raises `error` if the store cannot say."""
    try:
        return row.id not in await tokens.read_back([row.id])
    except StoreError:
        raise error from None


async def listed_for_erasure(tokens: TokenRepository, user_id: str, *, none_expected: bool) -> list[TokenRow]:
    """List the user's tokens; if there are none, earlier deletions are durable then, or `none_expected`."""
    rows = await tokens.list_for_user(user_id)
    if rows or none_expected:
        return rows
    # an earlier erasure may have lost its answer, and a failover may undo it; the second list is after that one
    await tokens.read_back([])
    return await tokens.list_for_user(user_id)
