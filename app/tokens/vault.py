"""The operations on a token. Everything that a caller may rely on is decided here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeVar

from app.errors import (
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    TokenInactive,
    TokenNotFound,
    VaultError,
)
from app.security.context import SecretField
from app.tokens import transitions
from app.tokens.census import Census
from app.tokens.cipher import SealedSecrets, TokenCipher
from app.tokens.events import Operation, TokenEvents
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
    TokenStatus,
    parse_user_id,
)
from app.tokens.provider_rules import ProviderRule
from app.tokens.recorded_operation import RecordedOperation, too_slow
from app.tokens.repository import TokenRepository
from app.tokens.row_rewrap import prepare_rewrap, write_rewrap
from app.tokens.shared_census import SharedCensus

T = TypeVar("T")
DEADLINE_SECONDS = 4.5
_ATTEMPTS = 20


class TokenVault:
    """Stores, reveals, rotates, patches and deletes tokens.

    A write without a precondition that meets a concurrent write starts over on the newer row; one with a precondition
    loses and says so. Every call ends within `deadline_seconds`, and the bounded time that its record takes. `rules`
    are what single providers ask of a new token, by provider; `on_reveal` gets each row that was revealed, and must
    neither wait nor raise. Every method may raise a `StoreError`, an `EncryptionError` or `AuditUnavailable` besides
    what it names.
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
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._rules = rules or {}
        self._on_reveal = on_reveal
        self._now = now
        self._deadline_seconds = deadline_seconds
        self._census = SharedCensus(tokens=tokens)

    async def store(
        self, token_id: TokenId, given: TokenInput, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoreResult:
        """Create the token or replace it whole; what is not given is empty afterwards, and the status is ok.

        Raises `VersionConflict` where the precondition does not hold.
        """
        async with self._recorded(Operation.STORE, caller, token_id.user_id, token_id) as attempt:
            rule = self._rules.get(token_id.provider)
            if rule is not None:
                given = rule(given, self._now())
            refresh = transitions.given_or(given.refresh_token, None)
            sealed = await self._cipher.seal(token_id, given.access_token, refresh)
            attempt.of_new(sealed)

            async def write(current: StoredToken | None) -> StoreResult | None:
                precondition.check(current)
                after = transitions.stored(current, token_id, given, sealed, now=self._now())
                if current is None:
                    written = await self._tokens.insert(after)
                else:
                    written = await self._tokens.replace(current, after)
                return None if written is None else StoreResult(token=written, created=current is None)

            return await self._until_settled(token_id, write)

    async def reveal(self, token_id: TokenId, *, caller: Caller, include_refresh: bool = False) -> RevealedToken:
        """Decrypt the token. Raises `TokenNotFound`, or `TokenInactive` where its status is not ok."""
        async with self._recorded(Operation.REVEAL, caller, token_id.user_id, token_id) as attempt:
            token = await self._find(token_id)
            return await self._open(token, attempt, include_refresh=include_refresh)

    async def reveal_many(
        self, token_ids: Sequence[TokenId], *, caller: Caller, include_refresh: bool = False
    ) -> list[RevealedToken | VaultError]:
        """Decrypt several tokens: for each, in order, the token or what is wrong with it.

        One deadline holds for all of them. Raises the `StoreError` where the store fails.
        """
        until = asyncio.get_running_loop().time() + self._deadline_seconds
        found: Mapping[TokenId, StoredToken] | StoreError
        try:
            async with asyncio.timeout_at(until):
                found = await self._tokens.get_many(token_ids)
        except StoreError as error:
            found = error
        except TimeoutError:
            found = too_slow()

        async def reveal(token_id: TokenId) -> RevealedToken | VaultError:
            try:
                async with self._recorded(Operation.REVEAL, caller, token_id.user_id, token_id, until=until) as attempt:
                    if isinstance(found, StoreError):
                        raise found
                    return await self._open(found.get(token_id), attempt, include_refresh=include_refresh)
            except VaultError as error:
                return error

        results = await asyncio.gather(*map(reveal, token_ids))
        if isinstance(found, StoreError):
            raise found
        return results

    async def list_for_user(self, user_id: str, *, caller: Caller) -> list[StoredToken]:
        """Return all of a user's tokens, their secrets still encrypted."""
        user_id = parse_user_id(user_id)
        async with self._recorded(Operation.LIST, caller, user_id):
            return await self._tokens.list_for_user(user_id)

    async def rotate(
        self, token_id: TokenId, given: TokenInput, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Replace the secret of an existing token; what is not given stays, its status included.

        Raises `TokenNotFound`, or `VersionConflict` where the precondition does not hold.
        """
        async with self._recorded(Operation.ROTATE, caller, token_id.user_id, token_id) as attempt:

            async def write(found: StoredToken | None) -> StoredToken | None:
                current = _existing(found, precondition)
                sealed = await self._seal_rotation(current, given)
                attempt.of_new(sealed)
                return await self._tokens.replace(current, transitions.rotated(current, given, sealed, now=self._now()))

            return await self._until_settled(token_id, write)

    async def patch(
        self, token_id: TokenId, changes: TokenPatch, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Change status or metadata. Raises as `rotate` does."""
        async with self._recorded(Operation.PATCH, caller, token_id.user_id, token_id) as attempt:

            async def write(found: StoredToken | None) -> StoredToken | None:
                current = _existing(found, precondition)
                attempt.of(current)
                return await self._tokens.replace(current, transitions.patched(current, changes, now=self._now()))

            return await self._until_settled(token_id, write)

    async def rewrap(
        self, token_id: TokenId, *, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> StoredToken:
        """Encrypt the token again under the primary; its version and all that is not about encryption stay.

        One that is there already is left alone. Raises as `rotate` does.
        """
        async with self._recorded(Operation.REWRAP, caller, token_id.user_id, token_id) as attempt:

            async def write(found: StoredToken | None) -> StoredToken | None:
                current = _existing(found, precondition)
                attempt.of(current)
                rewrap = await prepare_rewrap(self._cipher, current)
                if rewrap is None:
                    return current
                attempt.of(rewrap.after)
                return rewrap.after if await write_rewrap(self._tokens, rewrap) else None

            return await self._until_settled(token_id, write)

    async def delete(self, token_id: TokenId, *, caller: Caller, precondition: Precondition = NO_PRECONDITION) -> None:
        """Delete the token. Raises as `rotate` does."""
        async with self._recorded(Operation.DELETE, caller, token_id.user_id, token_id) as attempt:

            async def write(found: StoredToken | None) -> bool | None:
                current = _existing(found, precondition)
                attempt.of(current)
                return await self._tokens.delete(current) or None

            await self._until_settled(token_id, write)

    async def delete_for_user(self, user_id: str, *, caller: Caller) -> int:
        """Delete everything the vault holds of a user; return how many tokens that was."""
        user_id = parse_user_id(user_id)
        async with self._recorded(Operation.ERASE_USER, caller, user_id):
            deleted = 0
            # version by version, so that an erasure that arrives late takes no token that was stored after it
            while tokens := await self._tokens.list_for_user(user_id):
                deleted += await self._tokens.delete_many(tokens)
            return deleted

    async def census(self) -> Census:
        """Count the tokens by how they are encrypted; reads no secret and leaves no record."""
        lines = await self._census.lines(within_seconds=self._deadline_seconds)
        return Census.of(lines, primary_scheme=self._cipher.primary_scheme)

    async def _find(self, token_id: TokenId) -> StoredToken | None:
        """Read the row, and believe its name no more than its contents: it decides what a ciphertext opens for."""
        token = await self._tokens.get(token_id)
        if token is not None and token.token_id != token_id:
            raise StoreMisconfigured("the store answered with another token than the one asked for")
        return token

    async def _until_settled(self, token_id: TokenId, write: Callable[[StoredToken | None], Awaitable[T | None]]) -> T:
        """Read, decide, write conditionally; start over where someone else wrote in between."""
        for attempt in range(_ATTEMPTS):
            written = await write(await self._find(token_id))
            if written is not None:
                return written
            await asyncio.sleep(random.uniform(0, 0.002 * 2 ** min(attempt, 6)))  # noqa: S311  spreads writers out
        raise StoreTimeout("other writers kept changing this token; nothing was written")

    async def _open(
        self, token: StoredToken | None, attempt: RecordedOperation, *, include_refresh: bool
    ) -> RevealedToken:
        if token is None:
            raise _not_found()
        attempt.of(token)
        if token.status is not TokenStatus.OK:
            raise TokenInactive(f"the token's status is {token.status.value}")
        if include_refresh:
            secrets = await self._cipher.open(token)
            revealed = RevealedToken(token=token, access_token=secrets.access, refresh_token=secrets.refresh)
        else:
            access = await self._cipher.open_access(token)
            revealed = RevealedToken(token=token, access_token=access, refresh_token=None)
        attempt.revealed = _secrets_of(revealed)
        if self._on_reveal is not None:
            self._on_reveal(token)
        return revealed

    async def _seal_rotation(self, current: StoredToken, given: TokenInput) -> SealedSecrets:
        """Seal what was given, and a refresh token that stays where the key has changed: a row has one scheme."""
        refresh, until = transitions.given_or(given.refresh_token, None), self._cipher.key_deadline()
        sealed = await self._cipher.seal(current.token_id, given.access_token, refresh, until=until)
        stays = current.refresh_ciphertext if given.refresh_token is UNSET else None
        if stays is not None and self._cipher.scheme_of(stays) != sealed.access.scheme:
            refresh = await self._cipher.open_refresh(current, until=until)
            sealed = await self._cipher.seal(current.token_id, given.access_token, refresh, until=until)
        return sealed

    def _recorded(
        self,
        operation: Operation,
        caller: Caller,
        user_id: str,
        token_id: TokenId | None = None,
        *,
        until: float | None = None,
    ) -> RecordedOperation:
        until = until or asyncio.get_running_loop().time() + self._deadline_seconds
        return RecordedOperation(self._events, operation, caller, user_id, token_id, asyncio.timeout_at(until))


def _existing(found: StoredToken | None, precondition: Precondition) -> StoredToken:
    if found is None:
        raise _not_found()
    precondition.check(found)
    return found


def _secrets_of(revealed: RevealedToken) -> tuple[SecretField, ...]:
    if revealed.refresh_token is None:
        return (SecretField.ACCESS_TOKEN,)
    return (SecretField.ACCESS_TOKEN, SecretField.REFRESH_TOKEN)


def _not_found() -> TokenNotFound:
    return TokenNotFound("the user has no such token")
