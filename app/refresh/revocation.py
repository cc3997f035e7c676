"""Revocation: the secrets of a token are revoked at the provider, then the token is deleted.

From before the first request until the deletion the lease of a refresh is held: a refresh at the same time would bring
a new token that stays valid.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, TypeVar
from uuid import uuid4

from pydantic import SecretStr

from app.errors import (
    IntegrityError,
    MalformedCiphertext,
    RefreshInProgress,
    RevocationUnsupported,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    TokenNotFound,
    VaultError,
)
from app.refresh.detached_tasks import DetachedTasks
from app.refresh.lease import TAKEOVER_SECONDS, has_the_same_lease, revocation_holder, take_lease
from app.refresh.providers import OAuthProvider
from app.refresh.revocation_requests import RevocationRequests, Secrets, successor_unknown, untried
from app.security.context import SecretField
from app.tokens import transitions
from app.tokens.cipher import TokenCipher
from app.tokens.deletion import Erasure, KeptToken, Receipt, RevocationOutcome, delete_row, listed_for_erasure, outlast
from app.tokens.events import SUCCESS, SUPERSEDED, Operation, TokenEvents
from app.tokens.legacy_rows import is_legacy
from app.tokens.models import (
    ANSWER_LOST,
    NO_PRECONDITION,
    Caller,
    Precondition,
    StoredToken,
    TokenId,
    TokenRow,
    UnreadableRow,
    parse_user_id,
)
from app.tokens.recorded_operation import RecordedOperation
from app.tokens.repository import TokenRepository, find_token

if TYPE_CHECKING:  # imports aiohttp, which a vault without providers does not need
    from app.refresh.provider_client import ProviderClient
    from app.refresh.registry import ProviderRegistry

T = TypeVar("T")
REVOKED_REASON: Final = "revoked at the provider"
LEASE_WAIT_SECONDS: Final = 10.0
_PROVIDER_SECONDS: Final = 15.0  # for both requests about one token
_ERASURE_SECONDS: Final = 30.0  # for all requests about one user's tokens
_DELETION_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1
_AT_ONCE: Final = 8  # tokens of an erasure
_ROUNDS: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What a caller wants: with `required` a token whose secrets are not all revoked is kept."""

    caller: Caller
    required: bool
    until: float  # on the event loop's clock, for requests to providers


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lease:
    """A claimed row. With `answer_may_be_lost` the provider may have issued tokens that the row does not hold."""

    claimed: StoredToken
    answer_may_be_lost: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    """A row after its revocation, which is incomplete if there is an `error`. Without a `lease` nothing was sent."""

    row: TokenRow
    receipt: Receipt
    error: VaultError | None
    lease: _Lease | None = None


class TokenRevocation:
    """Revokes tokens and deletes them. Callers may leave: what has begun goes on in a task of its own."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        providers: ProviderRegistry | None = None,
        client: ProviderClient | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        lease_wait_seconds: float = LEASE_WAIT_SECONDS,
    ) -> None:
        """Without `providers` and `client`, no provider can revoke a token."""
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._providers = providers
        self._client = client
        self._now = now
        self._lease_wait_seconds = lease_wait_seconds
        self._tasks = DetachedTasks()

    async def delete(
        self, token_id: TokenId, *, required: bool, caller: Caller, precondition: Precondition = NO_PRECONDITION
    ) -> Receipt:
        """Revoke the refresh token, then the access token, and delete the token whatever the provider says.

        With `required` the token is kept, and the error raised, unless both are revoked. An error that is raised after
        a request was sent has the receipt in `receipt`. The precondition holds when the lease is taken.

        Raises `TokenNotFound`, `VersionConflict`, `RefreshInProgress` if a refresh of the token does not end, a
        `StoreError`, an `EncryptionError` or `AuditUnavailable`, and with `required` also a `ProviderError`,
        `GrantRejected` or `RevocationUnsupported`.
        """
        order = _Order(caller=caller, required=required, until=_in_seconds(_PROVIDER_SECONDS))
        return await self._tasks.run(self._remove(token_id, order, precondition))

    async def erase(self, user_id: str, *, required: bool, caller: Caller) -> Erasure:
        """Revoke and delete all of a user's tokens, each as `delete` does; an error of one concerns that one alone."""
        order = _Order(caller=caller, required=required, until=_in_seconds(_ERASURE_SECONDS))
        return await self._tasks.run(self._erase(parse_user_id(user_id), order))

    async def close(self) -> None:
        """Wait some seconds for what is in progress, then end it."""
        await self._tasks.close()

    async def _erase(self, user_id: str, order: _Order) -> Erasure:
        kept: dict[str, KeptToken] = {}
        receipts: list[tuple[TokenRow, Receipt]] = []
        at_once = asyncio.Semaphore(_AT_ONCE)

        async def remove(row: TokenRow) -> None:
            # the token id of such a row may be what does not decode, and then nothing finds it
            listed = row if isinstance(row, UnreadableRow) else None
            try:
                async with at_once:
                    receipts.append((row, await self._remove(row.token_id, order, NO_PRECONDITION, listed=listed)))
            except TokenNotFound:
                pass  # another caller has deleted it
            except VaultError as error:
                kept[row.id] = KeptToken(row, error)
                receipt = error.receipt if isinstance(error.receipt, Receipt) else untried(row)
                receipts.append((row, receipt))

        async with self._recorded(Operation.ERASE_USER, order.caller, user_id, None) as operation:
            while rows := [
                row
                for row in await listed_for_erasure(self._tokens, user_id, none_expected=bool(receipts))
                if row.id not in kept
            ]:
                await operation.announce()
                await asyncio.gather(*map(remove, rows))
            erasure = Erasure(
                deleted=sum(receipt.deleted for _, receipt in receipts),
                kept=tuple(sorted(kept.values(), key=lambda one: one.row.token_id)),
                receipts=tuple(sorted(receipts, key=lambda one: one[0].token_id)),
            )
            if erasure.error is not None:
                operation.outcome = erasure.error.code
        return erasure

    async def _remove(
        self, token_id: TokenId, order: _Order, precondition: Precondition, *, listed: UnreadableRow | None = None
    ) -> Receipt:
        receipt = None
        try:
            async with self._recorded(Operation.DELETE, order.caller, token_id.user_id, token_id) as deletion:
                for _ in range(_ROUNDS):
                    row, listed = listed or await find_token(self._tokens, token_id), None
                    if row is None:
                        raise TokenNotFound("the user has no such token")
                    precondition.check(row)
                    attempt = await self._revoke(row, order, deletion)
                    if attempt is None:
                        continue  # the token was changed before anything was sent
                    receipt = attempt.receipt
                    try:
                        if attempt.error is not None and order.required:
                            raise attempt.error
                        if await self._delete(attempt, precondition):
                            return (receipt := replace(receipt, deleted=True))
                    except VaultError:
                        await self._keep(attempt)
                        raise
                raise StoreTimeout("other writers kept changing this token; it was not deleted")
        except VaultError as error:
            error.receipt = error.receipt or receipt
            raise

    async def _revoke(self, row: TokenRow, order: _Order, deletion: RecordedOperation) -> _Attempt | None:
        """Take the lease and ask the provider; return `None` if the row was changed before anything was sent."""
        if isinstance(row, UnreadableRow):
            await deletion.announce()
            return _Attempt(row=row, receipt=untried(row), error=row.error())
        deletion.note(row)
        provider = self._provider_of(row)
        if provider is None:
            await deletion.announce()
            unsupported = RevocationUnsupported("no configured provider can revoke this token")
            return _Attempt(row=row, receipt=untried(row, RevocationOutcome.UNSUPPORTED), error=unsupported)
        attempt = None
        operation = self._recorded(Operation.REVOKE, order.caller, row.token_id.user_id, row.token_id)
        try:
            async with operation:
                operation.note(row)
                secrets = await self._open(row, operation, order)
                await deletion.announce()
                await operation.announce()
                lease = await self._claim(provider, row)
                if lease is None:
                    operation.outcome = SUPERSEDED
                    return None
                attempt = await self._ask(provider, lease, secrets, order)
                operation.revoked = _revoked_fields(attempt.receipt)
                operation.outcome = SUCCESS if attempt.error is None else attempt.error.code
        except VaultError as error:
            if attempt is not None:  # the trail does not take the event of what was done
                await self._keep(attempt)
                error.receipt = attempt.receipt
            raise
        return attempt

    def _provider_of(self, row: StoredToken) -> OAuthProvider | None:
        """Return the provider that can revoke the token.

        A ciphertext in PulsePlan's formats is bound to no provider, so its secret is sent to none.
        """
        if self._providers is None or row.encryption_scheme is None or is_legacy(row):
            return None
        provider = self._providers.find(row.token_id.provider)
        return None if provider is None or not provider.revokes else provider

    async def _open(self, row: StoredToken, operation: RecordedOperation, order: _Order) -> Secrets:
        """Decrypt each secret on its own: a damaged one need not keep the other from being revoked."""

        async def opened(secret: Awaitable[T]) -> T | VaultError:
            try:
                return await secret
            except (IntegrityError, MalformedCiphertext) as error:
                if order.required:
                    raise
                return error

        access = await opened(self._cipher.open_access(row))
        secrets = Secrets(access, await opened(self._cipher.open_refresh(row)))
        texts = (row.access_ciphertext, secrets.access), (row.refresh_ciphertext, secrets.refresh)
        operation.note_opened(*(text for text, secret in texts if isinstance(secret, SecretStr)))
        return secrets

    async def _claim(self, provider: OAuthProvider, row: StoredToken) -> _Lease | None:
        """Take the lease, waiting for a refresh in progress; return `None` once the row is another token's or gone."""
        current, give_up_at = row, _in_seconds(self._lease_wait_seconds)
        while True:
            answer_may_be_lost = current.refresh_state.may_have_successor
            holder = str(uuid4()) if answer_may_be_lost else revocation_holder()
            if await take_lease(self._tokens, current, holder=holder, lease_seconds=provider.lease_seconds):
                return _Lease(claimed=transitions.claimed(current, holder), answer_may_be_lost=answer_may_be_lost)
            if asyncio.get_running_loop().time() > give_up_at:
                raise RefreshInProgress("a refresh of this token has not ended; nothing was revoked")
            found = await self._tokens.get(row.token_id)
            if not isinstance(found, StoredToken) or (found.id, found.version) != (row.id, row.version):
                return None
            await asyncio.sleep(_PAUSE_SECONDS)
            current = found

    async def _ask(self, provider: OAuthProvider, lease: _Lease, secrets: Secrets, order: _Order) -> _Attempt:
        row = lease.claimed
        if self._client is None:
            raise RevocationUnsupported("no OAuth providers are configured")
        if order.required and lease.answer_may_be_lost:  # nothing that is sent could prove enough
            return _Attempt(row=row, receipt=untried(row), error=successor_unknown(), lease=lease)
        requests = RevocationRequests(
            client=self._client, provider=provider, row=row, secrets=secrets, required=order.required, until=order.until
        )
        receipt, error = await requests.send(answer_may_be_lost=lease.answer_may_be_lost)
        return _Attempt(row=row, receipt=receipt, error=error, lease=lease)

    async def _delete(self, attempt: _Attempt, precondition: Precondition) -> bool:
        """Delete the row, however often its metadata change; return `False` if it holds another token by now."""
        row, give_up_at = attempt.row, _in_seconds(_DELETION_SECONDS)
        if attempt.lease is None:
            await outlast(row, now=self._now)
            return await delete_row(self._tokens, row, precondition)
        while True:
            is_late = asyncio.get_running_loop().time() > give_up_at
            try:
                await outlast(row, now=self._now)
                if await self._tokens.delete(row):
                    return True
                found = (await self._tokens.read_back([row.id])).get(row.id)
            except StoreError as error:
                if is_late or not error.retryable:
                    raise
            else:
                if found is None:
                    return True  # by an attempt whose answer was lost, or by another caller
                if not isinstance(found, StoredToken) or not has_the_same_lease(found, attempt.lease.claimed):
                    return False
                if is_late:
                    raise StoreMisconfigured("the store keeps a row that it was asked to delete")
                row = found
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _keep(self, attempt: _Attempt) -> None:
        """End the lease of a row that is not deleted; if a secret of it is revoked, nobody gets it any more.

        If the store is down, the lease ends by itself.
        """
        if attempt.lease is None:
            return
        claimed = attempt.lease.claimed
        if attempt.lease.answer_may_be_lost:  # the refresh that had the lease before may still bring it
            retry_at = self._now() + timedelta(seconds=TAKEOVER_SECONDS)
            after = transitions.refresh_released(claimed, failure=ANSWER_LOST, retry_at=retry_at)
        else:
            after = transitions.refresh_released(claimed, failure=claimed.refresh_state.failure)
        if _revoked_fields(attempt.receipt):
            after = transitions.marked_revoked(after, REVOKED_REASON, now=self._now())
        with suppress(StoreError):
            await self._tokens.settle_refresh(claimed, after)

    def _recorded(
        self, operation: Operation, caller: Caller, user_id: str, token_id: TokenId | None
    ) -> RecordedOperation:
        return RecordedOperation(self._events, operation, caller, user_id, token_id, None)


def _revoked_fields(receipt: Receipt) -> tuple[SecretField, ...]:
    fields = (SecretField.ACCESS_TOKEN, receipt.access_token), (SecretField.REFRESH_TOKEN, receipt.refresh_token)
    return tuple(field for field, outcome in fields if outcome is RevocationOutcome.REVOKED)


def _in_seconds(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds
