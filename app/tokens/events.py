"""The record that every operation on a token leaves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from app.tokens.models import Caller, TokenId

SUCCESS = "success"
CANCELLED = "cancelled"


class Operation(StrEnum):
    STORE = "store"
    REVEAL = "reveal"
    LIST = "list"
    ROTATE = "rotate"
    REWRAP = "rewrap"
    PATCH = "patch"
    DELETE = "delete"
    ERASE_USER = "erase_user"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenEvent:
    """One attempt. `outcome` is `success`, the code of the error, or `cancelled`.

    `detail` is the error's, which holds no secret. `token_id` is `None` for operations on all of a user's tokens,
    `encryption_method` until it is known.
    """

    operation: Operation
    user_id: str
    token_id: TokenId | None
    encryption_method: str | None
    outcome: str
    detail: str | None
    caller: Caller


class TokenEvents(Protocol):
    def record(self, event: TokenEvent) -> None:
        """Keep the event; called once for each attempt, when its outcome is known."""
        ...
