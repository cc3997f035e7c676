"""Reveals: one token or many, refreshed first if they would not live long enough for the caller."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from app.errors import (
    InternalError,
    InvalidRequest,
    StoreError,
    TokenInactive,
    TokenNotFound,
    VaultError,
)
from app.security.context import SecretField
from app.security.strategy import KeyNotCached
from app.tokens.cipher import Secrets, TokenCipher
from app.tokens.events import Operation, TokenEvent, TokenEvents
from app.tokens.freshness import Freshness, NotRefreshableError, Refresher, freshness_of
from app.tokens.models import (
    Caller,
    RevealedToken,
    StoredToken,
    TokenId,
    TokenRow,
    TokenStatus,
    UnreadableRow,
)
from app.tokens.recorded_operation import RecordedOperation, too_slow
from app.tokens.repository import TokenRepository, find_token

Accept = Callable[[RevealedToken], None]
_AFTER_REFRESH_SECONDS: Final = 1.0  # of an operation's time, to read and decrypt the new token
_REFRESHES_OF_A_BATCH: Final = 8  # at once
_ROUNDS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealOptions:
    """What a caller wants to see of a token.

    `min_ttl_seconds` is how long the access token must live: `None` for the provider's margin, 0 to refresh nothing.
    With `rejected_version` a token that has that version is refreshed even if it is fresh.
    """

    include_refresh: bool = False
    min_ttl_seconds: int | None = None
    rejected_version: int | None = None


class TokenReveals:
    """Decrypts tokens for callers. `on_reveal` gets each row that was revealed; it must neither wait nor raise."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        refresher: Refresher | None,
        on_reveal: Callable[[StoredToken], None] | None,
        now: Callable[[], datetime],
        deadline_seconds: float,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._refresher = refresher
        self._on_reveal = on_reveal
        self._now = now
        self._deadline_seconds = deadline_seconds

    def is_refreshable(self, token: StoredToken) -> bool:
        """Whether the vault can refresh the token, as far as its row shows."""
        return self._refresher is not None and self._refresher.policy_of(token) is not None

    async def one(
        self, token_id: TokenId, *, caller: Caller, options: RevealOptions, accept: Accept | None = None
    ) -> RevealedToken:
        """Decrypt the token. Raises `TokenNotFound`, or `TokenInactive` if its status is not ok."""
        async with self._recorded(caller, token_id, self._deadline()) as operation:
            row = await find_token(self._tokens, token_id)
            with suppress(KeyNotCached, _RefreshDueError):
                return self._at_once(row, operation, options, accept)
            return await self._waiting(row, operation, options, accept)

    async def many(
        self, token_ids: Sequence[TokenId], *, caller: Caller, options: RevealOptions, accept: Accept | None = None
    ) -> list[RevealedToken | VaultError]:
        """Decrypt several different tokens; return for each, in order, the token or its error.

        One deadline holds for all of them, and each leaves an audit event. All rows are read at once; if that fails,
        the call raises the `StoreError`. A `VaultError` that `accept` raises is the error of that token, whose secrets
        are then not returned. Tokens whose key is not in memory, and those to refresh, come after the others,
        concurrently.
        """
        self._events.require_open()
        until = self._deadline()
        found = await self._find_many(token_ids, until)
        refreshing = asyncio.Semaphore(_REFRESHES_OF_A_BATCH)

        def reveal_at_once(operation: RecordedOperation, token_id: TokenId) -> RevealedToken | VaultError:
            try:
                if isinstance(found, StoreError):
                    raise found
                return self._at_once(found.get(token_id), operation, options, accept)
            except VaultError as error:
                return _recorded_error(error)

        async def reveal_waiting(token_id: TokenId) -> RevealedToken | VaultError:
            try:
                async with self._recorded(caller, token_id, until) as operation:
                    row = None if isinstance(found, StoreError) else found.get(token_id)
                    return await self._waiting(row, operation, options, accept, refreshing=refreshing)
            except VaultError as error:
                return _recorded_error(error)

        results: dict[TokenId, RevealedToken | VaultError] = {}
        events: list[TokenEvent] = []
        try:
            for token_id in token_ids:
                operation = self._recorded(caller, token_id, until)
                with suppress(KeyNotCached, _RefreshDueError):
                    results[token_id] = result = reveal_at_once(operation, token_id)
                    events.append(operation.event_of(result if isinstance(result, VaultError) else None))
        except Exception:
            events.append(operation.event(InternalError.code, None))
            raise
        finally:
            await self._events.record_many(events)
        if isinstance(found, StoreError):
            raise found
        waiting = [token_id for token_id in token_ids if token_id not in results]
        results |= zip(waiting, await asyncio.gather(*map(reveal_waiting, waiting)), strict=True)
        return [results[token_id] for token_id in token_ids]

    def _at_once(
        self, row: TokenRow | None, operation: RecordedOperation, options: RevealOptions, accept: Accept | None
    ) -> RevealedToken:
        """Decrypt a fresh token with a key in memory; otherwise raises `_RefreshDueError` or `KeyNotCached`."""
        token = _require_active(row, operation)
        freshness = self._freshness(token, options)
        if self._is_due(token, freshness, options):
            raise _RefreshDueError
        secrets = self._cipher.open_now(token, include_refresh=options.include_refresh)
        return self._revealed(token, secrets, operation, freshness, accept)

    async def _waiting(
        self,
        row: TokenRow | None,
        operation: RecordedOperation,
        options: RevealOptions,
        accept: Accept | None,
        *,
        refreshing: asyncio.Semaphore | None = None,
    ) -> RevealedToken:
        """Decrypt the token, after a refresh if it is due, and with a key that may have to be fetched or derived.

        A token that could not be refreshed now and is still valid is answered all the same.
        """
        token = _require_active(row, operation)
        freshness = self._freshness(token, options)
        if self._is_due(token, freshness, options):
            async with refreshing or nullcontext():
                token, freshness = await self._refreshed(token, operation, options)
        if options.include_refresh:
            secrets = await self._cipher.open(token)
        else:
            secrets = Secrets(await self._cipher.open_access(token), None)
        return self._revealed(token, secrets, operation, freshness, accept)

    async def _refreshed(
        self, token: StoredToken, operation: RecordedOperation, options: RevealOptions
    ) -> tuple[StoredToken, Freshness]:
        """Refresh the token and return its new row; of a token that is still valid, return it if that fails."""
        refresher, freshness = self._refresher, self._freshness(token, options)
        if refresher is None:
            return token, freshness
        until = (operation.until or self._deadline()) - _AFTER_REFRESH_SECONDS
        for _ in range(_ROUNDS):  # its row may become newer without a refresh
            try:
                await refresher.refresh(token, caller=operation.caller, until=until)
            except NotRefreshableError:
                _refuse_if_asked(options)
                return token, freshness_of(token, None, min_ttl_seconds=options.min_ttl_seconds, now=self._now())
            except VaultError as error:
                usable = not isinstance(error, TokenInactive) and options.rejected_version is None
                freshness = self._freshness(token, options)
                if not usable or freshness.is_expired:
                    raise
                return token, freshness
            token = _require_active(await find_token(self._tokens, token.token_id), operation)
            freshness = self._freshness(token, options)
            if not self._is_due(token, freshness, options):
                break
        return token, freshness

    def _freshness(self, token: StoredToken, options: RevealOptions) -> Freshness:
        policy = None if self._refresher is None else self._refresher.policy_of(token)
        return freshness_of(token, policy, min_ttl_seconds=options.min_ttl_seconds, now=self._now())

    def _is_due(self, token: StoredToken, freshness: Freshness, options: RevealOptions) -> bool:
        if not freshness.refreshable:
            if token.version == options.rejected_version:
                _refuse_if_asked(options)
            return False
        if options.rejected_version is not None:
            return token.version == options.rejected_version
        return options.min_ttl_seconds != 0 and freshness.is_due

    def _revealed(
        self,
        token: StoredToken,
        secrets: Secrets,
        operation: RecordedOperation,
        freshness: Freshness,
        accept: Accept | None,
    ) -> RevealedToken:
        """Return the token with its secrets, unless `accept` raises, and note in the operation what was opened."""
        operation.note_opened(
            token.access_ciphertext, token.refresh_ciphertext if secrets.refresh is not None else None
        )
        revealed = RevealedToken(
            token=token,
            access_token=secrets.access,
            refresh_token=secrets.refresh,
            min_ttl_met=freshness.is_met,
            refreshable=freshness.refreshable,
        )
        if accept is not None:
            accept(revealed)
        operation.revealed = _secrets_of(revealed)
        if self._on_reveal is not None:
            self._on_reveal(token)
        return revealed

    async def _find_many(self, token_ids: Sequence[TokenId], until: float) -> Mapping[TokenId, TokenRow] | StoreError:
        """Read the rows; return the error instead of raising it, because each token gets an event with it."""
        try:
            async with asyncio.timeout_at(until):
                return await self._tokens.get_many(token_ids)
        except StoreError as error:
            return error
        except TimeoutError:
            return too_slow()

    def _recorded(self, caller: Caller, token_id: TokenId, until: float) -> RecordedOperation:
        return RecordedOperation(self._events, Operation.REVEAL, caller, token_id.user_id, token_id, until)

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_seconds


class _RefreshDueError(Exception):
    """The token has to be refreshed before it is revealed."""


def _refuse_if_asked(options: RevealOptions) -> None:
    if options.rejected_version is not None:
        raise InvalidRequest("the vault cannot refresh this token: it has no refresh token, or no configured provider")


def _require_active(row: TokenRow | None, operation: RecordedOperation) -> StoredToken:
    if row is None:
        raise TokenNotFound("the user has no such token")
    if isinstance(row, UnreadableRow):
        raise row.error()
    operation.note(row)
    if row.status is not TokenStatus.OK:
        raise TokenInactive(f"the token's status is {row.status.value}")
    return row


def _recorded_error(error: VaultError) -> VaultError:
    """Return the error of one token of several, which its event has."""
    # its traceback is in a cycle with the frame, which would keep the row until the next garbage collection
    error.__traceback__ = error.__context__ = None
    error.recorded = True
    return error


def _secrets_of(revealed: RevealedToken) -> tuple[SecretField, ...]:
    if revealed.refresh_token is None:
        return (SecretField.ACCESS_TOKEN,)
    return (SecretField.ACCESS_TOKEN, SecretField.REFRESH_TOKEN)
