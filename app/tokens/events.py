"""Audit events: one for every operation on a token, and one before each change."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import NamedTuple, Protocol

from app.errors import AuditUnavailable
from app.security.context import SecretField
from app.security.formats import Family
from app.tokens.models import Caller, TokenId

SUCCESS = "success"
CANCELLED = "cancelled"
SUPERSEDED = "superseded"  # of a refresh whose token was replaced or deleted meanwhile
NOT_REFRESHABLE = "not_refreshable"  # of a refresh whose token shows to be an API token, once it is decrypted
INTENT = "intent"  # of an event that is recorded before a change is made


def new_intent() -> str:
    """Return an id for the intent of a change and its outcome."""
    return secrets.token_hex(8)


class Operation(StrEnum):
    __hash__ = str.__hash__  # Enum's is a function in Python, and every operation is a key of several dictionaries

    STORE = "store"
    REVEAL = "reveal"
    LIST = "list"
    ROTATE = "rotate"
    REWRAP = "rewrap"
    PATCH = "patch"
    DELETE = "delete"
    ERASE_USER = "erase_user"
    REFRESH = "refresh"
    EXCHANGE = "exchange"
    REVOKE = "revoke"  # of a token, at its provider
    CREATE_KEY = "create_key"  # of a calling service; so is the next
    REVOKE_KEY = "revoke_key"


class TokenEvent(NamedTuple):
    """One operation and its outcome; before a change, `intent`.

    The outcome is `success`, the code of the error, `cancelled`, or of a refresh `superseded` or `not_refreshable`.

    - `user_id`: `None` if the operation was refused before it was read
    - `token_id`: `None` also for operations on all of a user's tokens
    - `revealed`: the secrets that leave the vault
    - `revoked`: the secrets that the provider has revoked, whatever the outcome
    - `opened`: the families of the ciphertexts that were decrypted for it, as the ciphertexts themselves show them
    - `scheme`, `encryption_method`: the token's, `None` until they are known
    - `detail`: the error's, which holds no secret
    - `intent`: the id that the intent of a change and its outcome share; `None` if nothing was about to be changed
    """

    operation: Operation
    user_id: str | None
    token_id: TokenId | None
    scheme: str | None
    encryption_method: str | None
    outcome: str
    detail: str | None
    caller: Caller
    revealed: tuple[SecretField, ...] = ()
    revoked: tuple[SecretField, ...] = ()
    opened: tuple[Family, ...] = ()
    intent: str | None = None


class TokenObserver(Protocol):
    """Gets each event once its outcome is known; must neither wait nor raise."""

    def record(self, event: TokenEvent) -> None: ...

    def record_many(self, events: Sequence[TokenEvent]) -> None:
        """Record events of one caller, as `record` does each."""
        ...


class AuditTrail(Protocol):
    """Stores each event durably before its outcome leaves the vault."""

    def require_open(self) -> None:
        """Raise `AuditUnavailable` if the trail is known to refuse events, before anything is begun."""
        ...

    async def append(self, event: TokenEvent) -> None:
        """Return once the event is durable; raises `AuditUnavailable` within a bounded time."""
        ...

    async def append_many(self, events: Sequence[TokenEvent]) -> None:
        """Return once every event is durable; raises as `append` does, for all of them."""
        ...

    async def append_refusal(self, event: TokenEvent) -> None:
        """Append the event of a call that was refused for another reason; leave it out if the trail refuses events."""
        ...


class TokenEvents:
    """Gives each event to the audit trail, which may refuse it, and to the observers."""

    def __init__(
        self,
        *,
        audit: AuditTrail,
        observers: Sequence[TokenObserver] = (),
        on_refusal: Callable[[TokenEvent], None] = lambda _: None,
    ) -> None:
        self._audit = audit
        self._observers = observers
        self._on_refusal = on_refusal

    def require_open(self) -> None:
        """Raise `AuditUnavailable` if the trail is known to refuse events; called before an operation begins."""
        self._audit.require_open()

    async def announce(self, intent: TokenEvent) -> None:
        """Record the intent of a change before it is made; raises `AuditUnavailable`. Observers get only outcomes."""
        await self._audit.append(intent)

    async def record(self, event: TokenEvent) -> None:
        """Record the event of one operation before its outcome leaves; raises `AuditUnavailable`.

        Observers come after the trail, because they must see the outcome that the caller gets.
        """
        try:
            await self._audit.append(event)
        except AuditUnavailable as error:
            event = _refused(event, error)
            raise
        finally:
            self._observe(event)

    async def record_many(self, events: Sequence[TokenEvent]) -> None:
        """Record events of one caller together as `record` does each.

        If one cannot be recorded, none of their outcomes may leave.
        """
        try:
            await self._audit.append_many(events)
        except AuditUnavailable as error:
            events = [_refused(event, error) for event in events]
            raise
        finally:
            for observer in self._observers:
                observer.record_many(events)

    async def record_refusal(self, event: TokenEvent) -> None:
        """Append the event of an operation that was refused before it began; a failure changes nothing."""
        self._on_refusal(event)
        with suppress(AuditUnavailable):
            await self._audit.append_refusal(event)

    def _observe(self, event: TokenEvent) -> None:
        for observer in self._observers:
            observer.record(event)


def _refused(event: TokenEvent, error: AuditUnavailable) -> TokenEvent:
    return event._replace(outcome=error.code, detail=error.detail, revealed=())


class NoAuditTrail:
    """`AuditTrail` that keeps nothing."""

    def require_open(self) -> None: ...

    async def append(self, event: TokenEvent) -> None: ...

    async def append_many(self, events: Sequence[TokenEvent]) -> None: ...

    async def append_refusal(self, event: TokenEvent) -> None: ...

    async def close(self) -> None: ...
