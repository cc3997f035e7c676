"""The operations on tokens: what each reads, checks, writes and raises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from app.errors import (
    AnswerTooLarge,
    InternalError,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    TokenInactive,
    TokenNotFound,
    VaultError,
)
from app.security.context import SecretField
from app.security.schemes import scheme_of
from app.security.strategy import KeyNotCached
from app.single_flight import AsyncSingleFlight, SharedCall
from app.tokens import transitions
from app.tokens.census import Census, CensusRow
from app.tokens.cipher import Binding, SealedSecrets, Secrets, TokenCipher
from app.tokens.events import Operation, TokenEvent, TokenEvents
from app.tokens.legacy_rows import require_own_secrets
from app.tokens.models import (
    NO_PRECONDITION,
    UNSET,
    Caller,
    Precondition,
    RevealedToken,
    StoredToken,
    StoreResult,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenRow,
    TokenStatus,
    UnreadableRow,
    parse_user_id,
)
from app.tokens.provider_rules import ProviderRule
from app.tokens.recorded_operation import RecordedOperation, too_slow
from app.tokens.repository import MAXIMUM_LISTED, TokenRepository
from app.tokens.row_rewrap import prepare_rewrap, write_rewrap

T = TypeVar("T")
OPERATION_SECONDS = 4.5
_MAXIMUM_ROUNDS = 20
_LONGEST_WAIT_MILLISECONDS = 20


class TokenVault:
    """Stores, reveals, rotates, patches and deletes tokens.

    - A write without a precondition that meets a concurrent write starts over on the newer row. With a precondition it
      raises `VersionConflict` if the precondition no longer holds.
    - Every call ends within `deadline_seconds`, plus the bounded time of its audit event.
    - Every method may raise a `StoreError`, an `EncryptionError` or `AuditUnavailable`, besides the errors it names.

    `rules` adjust new tokens, by provider. `on_reveal` gets each row that was revealed; it must neither wait nor raise.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        rules: Mapping[str, ProviderRule] | None = None,
        on_reveal: Callable[[StoredToken], None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        deadline_seconds: float = OPERATION_SECONDS,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._rules = rules or {}
        self._on_reveal = on_reveal
        self._now = now
        self._deadline_seconds = deadline_seconds
        self._censuses: AsyncSingleFlight[list[CensusRow]] = AsyncSingleFlight()

    async def store(
        self, token_id: TokenId, given: TokenInput, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoreResult:
        """Create the token, or replace it whole: values that are UNSET become empty, and the status becomes ok.

        Raises `VersionConflict`.
        """
        async with self._recorded(Operation.STORE, caller, token_id) as operation:
            rule = self._rules.get(token_id.provider)
            if rule is not None:
                given = rule(given, self._now())
            refresh = transitions.given_or(given.refresh_token, None)
            binding = Binding(token_id, transitions.given_or(given.base_url, None))
            sealed = await self._cipher.seal(binding, given.access_token, refresh)
            operation.note_sealed(sealed)

            async def write(current: TokenRow | None) -> StoreResult | None:
                precondition.check(current)
                after = transitions.stored(current, token_id, given, sealed, now=self._now())
                await operation.announce()
                if current is None:
                    written = await self._tokens.insert(after)
                else:
                    written = await self._tokens.replace(current, after)
                return None if written is None else StoreResult(token=written, created=current is None)

            return await self._until_settled(token_id, write)

    async def reveal(self, token_id: TokenId, *, caller: Caller, include_refresh: bool = False) -> RevealedToken:
        """Decrypt the token. Raises `TokenNotFound`, or `TokenInactive` if its status is not ok."""
        async with self._recorded(Operation.REVEAL, caller, token_id) as operation:
            token = await self._find(token_id)
            return await self._reveal(token, operation, include_refresh=include_refresh)

    async def reveal_many(
        self,
        token_ids: Sequence[TokenId],
        *,
        caller: Caller,
        include_refresh: bool = False,
        accept: Callable[[RevealedToken], None] | None = None,
    ) -> list[RevealedToken | VaultError]:
        """Decrypt several different tokens; return for each, in order, the token or its error.

        One deadline holds for all of them, and each leaves an audit event. All rows are read at once; if that fails,
        the call raises the `StoreError`. A `VaultError` that `accept` raises is the error of that token, whose secrets
        are then not returned. Tokens whose key is not in memory are decrypted after the others, concurrently.
        """
        self._events.require_open()
        until = self._deadline()
        found = await self._find_many(token_ids, until)

        def reveal_now(operation: RecordedOperation, token_id: TokenId) -> RevealedToken | VaultError:
            try:
                if isinstance(found, StoreError):
                    raise found
                token = _require_active(found.get(token_id), operation)
                secrets = self._cipher.open_now(token, include_refresh=include_refresh)
                return self._revealed(token, secrets, operation, include_refresh=include_refresh, accept=accept)
            except VaultError as error:
                return _recorded_error(error)

        async def reveal_waiting(token_id: TokenId) -> RevealedToken | VaultError:
            try:
                async with self._recorded(Operation.REVEAL, caller, token_id, until=until) as operation:
                    row = None if isinstance(found, StoreError) else found.get(token_id)
                    return await self._reveal(row, operation, include_refresh=include_refresh, accept=accept)
            except VaultError as error:
                return _recorded_error(error)

        results: dict[TokenId, RevealedToken | VaultError] = {}
        events: list[TokenEvent] = []
        try:
            for token_id in token_ids:
                operation = self._recorded(Operation.REVEAL, caller, token_id, until=until)
                with suppress(KeyNotCached):
                    results[token_id] = result = reveal_now(operation, token_id)
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

    async def list_for_user(self, user_id: str, *, caller: Caller) -> list[TokenRow]:
        """Return all of a user's tokens, with their secrets still encrypted, and the rows that do not decode.

        Raises `AnswerTooLarge` if there are more than `MAXIMUM_LISTED`.
        """
        user_id = parse_user_id(user_id)
        async with self._recorded_for_user(Operation.LIST, caller, user_id):
            rows = await self._tokens.list_for_user(user_id)
            if len(rows) > MAXIMUM_LISTED:
                raise AnswerTooLarge(f"the user has more than {MAXIMUM_LISTED} tokens, too many to list")
            return rows

    async def rotate(
        self, token_id: TokenId, given: TokenInput, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Replace the secret of an existing token; values that are UNSET and the status stay.

        Another base URL removes a refresh token that is UNSET. A base URL that the row has and that is UNSET stays if
        the access token still decrypts beside it; otherwise its `EncryptionError` is raised.

        Raises `TokenNotFound` or `VersionConflict`.
        """
        async with self._recorded(Operation.ROTATE, caller, token_id) as operation:

            async def write(found: TokenRow | None) -> StoredToken | None:
                current = _require_token(found, precondition)
                sealed = await self._seal_rotation(current, given, operation)
                operation.note_sealed(sealed)
                after = transitions.rotated(current, given, sealed, now=self._now())
                await operation.announce()
                return await self._tokens.replace(current, after)

            return await self._until_settled(token_id, write)

    async def patch(
        self, token_id: TokenId, changes: TokenPatch, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Change the status or metadata. Raises `TokenNotFound` or `VersionConflict`."""
        async with self._recorded(Operation.PATCH, caller, token_id) as operation:

            async def write(found: TokenRow | None) -> StoredToken | None:
                current = _require_token(found, precondition)
                operation.note(current)
                after = transitions.patched(current, changes, now=self._now())
                await operation.announce()
                return await self._tokens.replace(current, after)

            return await self._until_settled(token_id, write)

    async def rewrap(
        self, token_id: TokenId, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Rewrap the token; its version and every column that is not about encryption stay.

        A token under the primary is returned unchanged. Raises `TokenNotFound` or `VersionConflict`.
        """
        async with self._recorded(Operation.REWRAP, caller, token_id) as operation:

            async def write(found: TokenRow | None) -> StoredToken | None:
                current = _require_token(found, precondition)
                operation.note(current)
                rewrap = await prepare_rewrap(self._tokens, self._cipher, current)
                operation.note_opened(current.access_ciphertext, current.refresh_ciphertext)
                if rewrap is None:
                    return current
                operation.note(rewrap.after)
                await operation.announce()
                return rewrap.after if await write_rewrap(self._tokens, rewrap) else None

            return await self._until_settled(token_id, write)

    async def delete(self, token_id: TokenId, *, caller: Caller, precondition: Precondition = NO_PRECONDITION) -> None:
        """Delete the token, also if its row does not decode. Raises `TokenNotFound` or `VersionConflict`.

        If the store's answer is lost, a row that is gone is a success only without a precondition: with one, another
        writer may have changed and deleted the row, and the outcome stays unknown.
        """
        async with self._recorded(Operation.DELETE, caller, token_id) as operation:

            async def write(found: TokenRow | None) -> bool | None:
                current = _require_row(found, precondition)
                if isinstance(current, StoredToken):
                    operation.note(current)
                await self._outlast(current)
                await operation.announce()
                try:
                    return await self._tokens.delete(current) or None
                except StoreError as error:
                    if precondition == NO_PRECONDITION and error.retryable and await self._is_gone(current, error):
                        return True
                    raise

            await self._until_settled(token_id, write)

    async def delete_for_user(self, user_id: str, *, caller: Caller) -> int:
        """Delete all of a user's tokens; return how many."""
        user_id = parse_user_id(user_id)
        async with self._recorded_for_user(Operation.ERASE_USER, caller, user_id) as operation:
            deleted, kept = 0, set[tuple[str, int]]()
            # in rounds of as many rows as the store lists, so that a user with more is erased too
            # each at its version: a statement that arrives late deletes no token that was stored after it
            while tokens := await self._tokens.list_for_user(user_id):
                found = {(token.id, token.version) for token in tokens}
                if found == kept:
                    raise StoreMisconfigured("the store keeps rows of this user that it was asked to delete")
                await self._outlast(*tokens)
                await operation.announce()
                in_round = await self._tokens.delete_many(tokens)
                deleted, kept = deleted + in_round, set() if in_round else found
            return deleted

    async def census(self) -> Census:
        """Count the tokens by encryption scheme; reads no secret and leaves no audit event.

        The store reads every row, even if the caller has left. Concurrent callers share one count.
        """
        count = self._censuses.join("census", lambda: SharedCall(asyncio.ensure_future(self._tokens.census())))
        try:
            async with asyncio.timeout(self._deadline_seconds):
                lines = await count.result()
        except TimeoutError:
            raise StoreTimeout(
                "the tokens could not be counted in time; `token-vault encryption status` waits longer"
            ) from None
        return Census.of(lines, primary_scheme=self._cipher.primary_scheme)

    async def _outlast(self, *tokens: TokenRow) -> None:
        """Wait until a token that is stored from now on gets a higher version than these, which are deleted next.

        That takes a millisecond for a token as young as that. It takes no longer if the clocks of replicas differ.
        """
        ahead = max(token.version for token in tokens) - transitions.first_version(self._now())
        if ahead >= 0:
            await asyncio.sleep(min(ahead + 1, _LONGEST_WAIT_MILLISECONDS) / 1000)

    async def _find(self, token_id: TokenId) -> TokenRow | None:
        """Read the row, and check its token id, because a ciphertext opens for the id that the row names."""
        token = await self._tokens.get(token_id)
        if token is not None and token.token_id != token_id:
            raise StoreMisconfigured("the store returned another token than the requested one")
        return token

    async def _find_many(self, token_ids: Sequence[TokenId], until: float) -> Mapping[TokenId, TokenRow] | StoreError:
        """Read the rows; return the error instead of raising it, because each token gets an event with it."""
        try:
            async with asyncio.timeout_at(until):
                return await self._tokens.get_many(token_ids)
        except StoreError as error:
            return error
        except TimeoutError:
            return too_slow()

    async def _is_gone(self, row: TokenRow, error: StoreError) -> bool:
        """Whether the row no longer exists; raises `error` if the store cannot say."""
        try:
            found = await self._tokens.get(row.token_id)
        except StoreError:
            raise error from None
        return found is None or found.id != row.id

    async def _until_settled(self, token_id: TokenId, write: Callable[[TokenRow | None], Awaitable[T | None]]) -> T:
        """Read the row and write it conditionally, again on the newer row if somebody else wrote in between."""
        for round_ in range(_MAXIMUM_ROUNDS):
            written = await write(await self._find(token_id))
            if written is not None:
                return written
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(round_, 6)))  # noqa: S311  spreads writers out
        raise StoreTimeout("other writers kept changing this token; nothing was written")

    async def _reveal(
        self,
        row: TokenRow | None,
        operation: RecordedOperation,
        *,
        include_refresh: bool,
        accept: Callable[[RevealedToken], None] | None = None,
    ) -> RevealedToken:
        token = _require_active(row, operation)
        if include_refresh:
            secrets = await self._cipher.open(token)
        else:
            secrets = Secrets(await self._cipher.open_access(token), None)
        return self._revealed(token, secrets, operation, include_refresh=include_refresh, accept=accept)

    def _revealed(
        self,
        token: StoredToken,
        secrets: Secrets,
        operation: RecordedOperation,
        *,
        include_refresh: bool,
        accept: Callable[[RevealedToken], None] | None = None,
    ) -> RevealedToken:
        """Return the token with its secrets, unless `accept` raises, and note in the operation what was opened."""
        operation.note_opened(token.access_ciphertext, token.refresh_ciphertext if include_refresh else None)
        revealed = RevealedToken(token=token, access_token=secrets.access, refresh_token=secrets.refresh)
        if accept is not None:
            accept(revealed)
        operation.revealed = _secrets_of(revealed)
        if self._on_reveal is not None:
            self._on_reveal(token)
        return revealed

    async def _seal_rotation(
        self, current: StoredToken, given: TokenInput, operation: RecordedOperation
    ) -> SealedSecrets:
        """Encrypt the new secrets; if the scheme has changed, also a refresh token that stays: a row has one scheme."""
        refresh, until = transitions.given_or(given.refresh_token, None), self._cipher.key_deadline()
        if given.base_url is UNSET and current.base_url is not None:
            # the stored access token proves the row's URL: an edited one must not get the new secret
            await self._cipher.open_access(current, until=until)
            operation.note_opened(current.access_ciphertext)
        binding = Binding(current.token_id, transitions.given_or(given.base_url, current.base_url))
        sealed = await self._cipher.seal(binding, given.access_token, refresh, until=until)
        stays = transitions.kept_refresh(current, given)
        if stays is not None and scheme_of(stays) != sealed.access.scheme:
            # the new ciphertext is bound to this row for good, so its legacy one must not be another secret's
            await require_own_secrets(self._tokens, replace(current, access_ciphertext=sealed.access.ciphertext))
            refresh = await self._cipher.open_refresh(current, until=until)
            operation.note_opened(stays)
            sealed = await self._cipher.seal(binding, given.access_token, refresh, until=until)
        return sealed

    def _recorded(
        self, operation: Operation, caller: Caller, token_id: TokenId, *, until: float | None = None
    ) -> RecordedOperation:
        deadline = asyncio.timeout_at(until or self._deadline())
        return RecordedOperation(self._events, operation, caller, token_id.user_id, token_id, deadline)

    def _recorded_for_user(self, operation: Operation, caller: Caller, user_id: str) -> RecordedOperation:
        return RecordedOperation(self._events, operation, caller, user_id, None, asyncio.timeout_at(self._deadline()))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_seconds


def _require_row(found: TokenRow | None, precondition: Precondition) -> TokenRow:
    if found is None:
        raise _not_found()
    precondition.check(found)
    return found


def _require_token(found: TokenRow | None, precondition: Precondition) -> StoredToken:
    row = _require_row(found, precondition)
    if isinstance(row, UnreadableRow):
        raise row.error()
    return row


def _require_active(row: TokenRow | None, operation: RecordedOperation) -> StoredToken:
    if row is None:
        raise _not_found()
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


def _not_found() -> TokenNotFound:
    return TokenNotFound("the user has no such token")
