"""The record that every operation on a token leaves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Protocol

from app.errors import AuditUnavailable
from app.security.context import SecretField
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
    `user_id` also where the attempt was refused before it could be read. `scheme` and `encryption_method` are the
    token's, `None` until they are known; `revealed` names the secrets that leave the vault.
    """

    operation: Operation
    user_id: str | None
    token_id: TokenId | None
    revealed: tuple[SecretField, ...] = ()
    scheme: str | None
    encryption_method: str | None
    outcome: str
    detail: str | None
    caller: Caller


class TokenObserver(Protocol):
    """Is told of each attempt when its outcome is known; must neither wait nor raise."""

    def record(self, event: TokenEvent) -> None: ...


class AuditTrail(Protocol):
    """Keeps each attempt for good, before its outcome leaves the vault."""

    def require_open(self) -> None:
        """Raise `AuditUnavailable` where it is known that no event can be kept, so that nothing is begun."""
        ...

    async def append(self, event: TokenEvent) -> None:
        """Return once the event is kept, or raise `AuditUnavailable` within a bounded time."""
        ...


class TokenEvents:
    """Hands each attempt to those who watch, and to the audit trail, which may refuse it."""

    def __init__(self, *, audit: AuditTrail, observers: Sequence[TokenObserver] = ()) -> None:
        self._audit = audit
        self._observers = observers

    def require_open(self) -> None:
        """Raise `AuditUnavailable` where an attempt could not be recorded; called before it is made."""
        self._audit.require_open()

    async def record(self, event: TokenEvent) -> None:
        """Keep the event; called once for each attempt, before its outcome leaves. Raises `AuditUnavailable`.

        Those who watch hear what the caller will hear, so after the trail has decided.
        """
        try:
            await self._audit.append(event)
        except AuditUnavailable as error:
            event = replace(event, outcome=error.code, detail=error.detail, revealed=())
            raise
        finally:
            for observer in self._observers:
                observer.record(event)

    async def record_refusal(self, event: TokenEvent) -> None:
        """Keep an attempt that was refused before it was made. The refusal stands whether that succeeds or not."""
        with suppress(AuditUnavailable):
            self._audit.require_open()
            await self._audit.append(event)


class NoAuditTrail:
    """`AuditTrail` where none is configured."""

    def require_open(self) -> None: ...

    async def append(self, event: TokenEvent) -> None: ...

    async def close(self) -> None: ...
