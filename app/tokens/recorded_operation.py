"""A recorded operation: bounded in time, and leaves one audit event whatever its outcome, and one before a change."""

from __future__ import annotations

import asyncio
from contextvars import Token
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from app.errors import AuditUnavailable, InternalError, StoreTimeout, VaultError
from app.security.context import SecretField
from app.security.formats import Family, families_of
from app.tokens.cipher import SealedSecrets
from app.tokens.events import CANCELLED, INTENT, SUCCESS, Operation, TokenEvent, TokenEvents, new_intent
from app.tokens.models import Caller, StoredToken, TokenId, current_service


@dataclass(slots=True)
class RecordedOperation:
    """Context manager around one operation. Its audit event is durable before the caller gets the outcome.

    If the event cannot be recorded the operation raises `AuditUnavailable`, even if it succeeded. The operation itself
    sets `scheme`, `method`, `revealed` and `revoked`, and calls `announce` before each change.
    """

    events: TokenEvents
    operation: Operation
    caller: Caller
    user_id: str | None
    token_id: TokenId | None
    until: float | None  # on the event loop's clock
    scheme: str | None = None
    method: str | None = None
    revealed: tuple[SecretField, ...] = ()
    revoked: tuple[SecretField, ...] = ()
    opened: tuple[Family, ...] = ()
    intent: str | None = None
    outcome: str = SUCCESS  # the operation may set another one; at the end, that of its event
    _deadline: asyncio.Timeout = field(init=False)
    _before: Token[str] = field(init=False)

    def note(self, token: StoredToken) -> None:
        """Note how the token is encrypted."""
        self.scheme, self.method = token.encryption_scheme, token.encryption_method

    def note_sealed(self, sealed: SealedSecrets) -> None:
        """Note how the new secrets are encrypted."""
        self.scheme, self.method = sealed.access.scheme, sealed.access.method

    def note_opened(self, *ciphertexts: str | None) -> None:
        """Add the families of ciphertexts that were decrypted; a row's scheme may claim another one."""
        families = families_of(*ciphertexts)
        self.opened = tuple(dict.fromkeys((*self.opened, *families))) if self.opened else families

    async def announce(self) -> None:
        """Record the intent of a change, once; raises `AuditUnavailable`, and then the change must not be made.

        So a process that is killed between a change and its event leaves a trace of the change.
        """
        if self.intent is None:
            self.intent = new_intent()
            await self.events.announce(self.event(INTENT, None))

    async def __aenter__(self) -> Self:
        self.events.require_open()
        self._deadline = asyncio.timeout_at(self.until)
        await self._deadline.__aenter__()
        self._before = current_service.set(self.caller.service)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome, detail = self.outcome if error is None else InternalError.code, None
        current_service.reset(self._before)
        try:
            await self._deadline.__aexit__(kind, error, trace)
            if isinstance(error, VaultError):
                outcome, detail, error.recorded = error.code, error.detail, True
            elif isinstance(error, asyncio.CancelledError):
                outcome = CANCELLED
        except TimeoutError:
            timed_out = too_slow()
            outcome, detail, timed_out.recorded = timed_out.code, timed_out.detail, True
            raise timed_out from None
        finally:
            await self._record(outcome, detail)

    def event_of(self, error: VaultError | None) -> TokenEvent:
        """Return the event of this operation, which ended with `error` or successfully."""
        return self.event(SUCCESS, None) if error is None else self.event(error.code, error.detail)

    def event(self, outcome: str, detail: str | None) -> TokenEvent:
        """Return the event of this operation with its outcome."""
        return TokenEvent(
            operation=self.operation,
            user_id=self.user_id,
            token_id=self.token_id,
            scheme=self.scheme,
            encryption_method=self.method,
            outcome=outcome,
            detail=detail,
            caller=self.caller,
            revealed=self.revealed if outcome == SUCCESS else (),
            revoked=self.revoked,
            opened=self.opened,
            intent=self.intent,
        )

    async def _record(self, outcome: str, detail: str | None) -> None:
        self.outcome = outcome
        try:
            await self.events.record(self.event(outcome, detail))
        except AuditUnavailable as error:
            self.outcome = error.code
            if outcome != CANCELLED:  # a cancelled task ends as cancelled
                raise


def too_slow() -> StoreTimeout:
    """Return the error of an operation that exceeded its deadline."""
    return StoreTimeout("the store did not answer in time; a write may or may not have happened")
