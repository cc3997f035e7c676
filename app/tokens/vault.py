"""The operations on tokens: what each reads, checks, writes and raises."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

from app.errors import (
    AnswerTooLarge,
    StoreMisconfigured,
    StoreTimeout,
    TokenNotFound,
    TokenReferenced,
    VaultError,
)
from app.security.schemes import scheme_of
from app.single_flight import AsyncSingleFlight, SharedCall
from app.tokens import transitions
from app.tokens.census import Census, CensusRow
from app.tokens.cipher import Binding, SealedSecrets, TokenCipher
from app.tokens.deletion import Erasure, KeptToken, delete_row, listed_for_erasure, outlast
from app.tokens.events import Operation, TokenEvents
from app.tokens.freshness import Refresher
from app.tokens.legacy_rows import require_own_secrets
from app.tokens.models import (
    NO_PRECONDITION,
    UNSET,
    Caller,
    Precondition,
    RevealedToken,
    StoredToken,
    StoreResult,
    TokenFilter,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenRow,
    UnreadableRow,
    parse_user_id,
)
from app.tokens.provider_rules import ProviderRule
from app.tokens.recorded_operation import RecordedOperation
from app.tokens.repository import MAXIMUM_LISTED, TokenRepository, find_token
from app.tokens.reveals import Accept, RevealOptions, TokenReveals
from app.tokens.row_rewrap import prepare_rewrap, write_rewrap

T = TypeVar("T")
OPERATION_SECONDS = 4.5
_MAXIMUM_ROUNDS = 20
_DEFAULT_OPTIONS = RevealOptions()


class TokenVault:
    """Stores, reveals, rotates, patches and deletes tokens.

    - A write without a precondition that meets a concurrent write starts over on the newer row. With a precondition it
      raises `VersionConflict` if the precondition no longer holds.
    - Every call ends within `deadline_seconds`, plus the bounded time of its audit event.
    - Every method may raise a `StoreError`, an `EncryptionError` or `AuditUnavailable`, besides the errors it names.

    `rules` adjust new tokens, by provider. `refresher` refreshes tokens before a reveal. `on_reveal` gets each row that
    was revealed; it must neither wait nor raise.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        rules: Mapping[str, ProviderRule] | None = None,
        refresher: Refresher | None = None,
        on_reveal: Callable[[StoredToken], None] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        deadline_seconds: float = OPERATION_SECONDS,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._rules = rules or {}
        self._now = now
        self._deadline_seconds = deadline_seconds
        self._reveals = TokenReveals(
            tokens=tokens,
            cipher=cipher,
            events=events,
            refresher=refresher,
            on_reveal=on_reveal,
            now=now,
            deadline_seconds=deadline_seconds,
        )
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

    async def reveal(
        self,
        token_id: TokenId,
        *,
        caller: Caller,
        options: RevealOptions = _DEFAULT_OPTIONS,
        accept: Accept | None = None,
    ) -> RevealedToken:
        """Decrypt the token, refreshed first if it is due.

        A `VaultError` that `accept` raises ends the reveal, and no secret is returned.

        Raises `TokenNotFound`, or `TokenInactive` if its status is not ok. Of a token that has expired it raises what
        prevented the refresh: a `ProviderError`, for example.
        """
        return await self._reveals.one(token_id, caller=caller, options=options, accept=accept)

    async def reveal_many(
        self,
        token_ids: Sequence[TokenId],
        *,
        caller: Caller,
        options: RevealOptions = _DEFAULT_OPTIONS,
        accept: Accept | None = None,
    ) -> list[RevealedToken | VaultError]:
        """Decrypt several different tokens; return for each, in order, the token or its error.

        Raises the `StoreError` if the rows cannot be read. A `VaultError` that `accept` raises is the error of that
        token, whose secrets are then not returned.
        """
        return await self._reveals.many(token_ids, caller=caller, options=options, accept=accept)

    def is_refreshable(self, token: StoredToken) -> bool:
        """Whether the vault can refresh the token, as far as its row shows."""
        return self._reveals.is_refreshable(token)

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

    async def list_all(self, wanted: TokenFilter, *, caller: Caller, after: str | None, limit: int) -> list[TokenRow]:
        """Return a page of the tokens of all users, as `TokenRepository.find` does."""
        async with RecordedOperation(self._events, Operation.LIST, caller, None, None, self._deadline()):
            return await self._tokens.find(wanted, after=after, limit=limit)

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
        """Delete the token, also if its row does not decode.

        Raises `TokenNotFound`, `VersionConflict`, or `TokenReferenced` if another table references the row.

        If the store's answer is lost, a row that is gone is a success only without a precondition: with one, another
        writer may have changed and deleted the row, and the outcome stays unknown.
        """
        async with self._recorded(Operation.DELETE, caller, token_id) as operation:

            async def write(found: TokenRow | None) -> bool | None:
                current = _require_row(found, precondition)
                if isinstance(current, StoredToken):
                    operation.note(current)
                await outlast(current, now=self._now)
                await operation.announce()
                return await delete_row(self._tokens, current, precondition) or None

            await self._until_settled(token_id, write)

    async def delete_for_user(self, user_id: str, *, caller: Caller) -> Erasure:
        """Delete all of a user's tokens but those that another table references."""
        user_id = parse_user_id(user_id)
        async with self._recorded_for_user(Operation.ERASE_USER, caller, user_id) as operation:
            deleted, kept, stuck = 0, dict[str, KeptToken](), set[tuple[str, int]]()
            # in rounds of as many rows as the store lists, so that a user with more is erased too
            # each at its version: a statement that arrives late deletes no token that was stored after it
            while tokens := [
                row
                for row in await listed_for_erasure(self._tokens, user_id, none_expected=deleted > 0)
                if row.id not in kept
            ]:
                found = {(token.id, token.version) for token in tokens}
                if found == stuck:
                    raise StoreMisconfigured("the store keeps rows of this user that it was asked to delete")
                await outlast(*tokens, now=self._now)
                await operation.announce()
                done = await self._tokens.delete_many(tokens)
                deleted += done.deleted
                for row in done.referenced:
                    kept[row.id] = KeptToken(row, TokenReferenced("another table references the row of this token"))
                stuck = set() if done.deleted or done.referenced else found
            erasure = Erasure(deleted, tuple(kept.values()))
            if erasure.error is not None:
                operation.outcome = erasure.error.code
            return erasure

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

    async def _until_settled(self, token_id: TokenId, write: Callable[[TokenRow | None], Awaitable[T | None]]) -> T:
        """Read the row and write it conditionally, again on the newer row if somebody else wrote in between."""
        for round_ in range(_MAXIMUM_ROUNDS):
            written = await write(await find_token(self._tokens, token_id))
            if written is not None:
                return written
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(round_, 6)))  # noqa: S311  spreads writers out
        raise StoreTimeout("other writers kept changing this token; nothing was written")

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
        until = until or self._deadline()
        return RecordedOperation(self._events, operation, caller, token_id.user_id, token_id, until)

    def _recorded_for_user(self, operation: Operation, caller: Caller, user_id: str) -> RecordedOperation:
        return RecordedOperation(self._events, operation, caller, user_id, None, self._deadline())

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


def _not_found() -> TokenNotFound:
    return TokenNotFound("the user has no such token")
