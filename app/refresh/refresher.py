"""The refresh of one token: everything that can fail is proven first, then the refresh token is spent, once.

docs/refresh.md has the steps and what a crash at each leaves behind.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol
from uuid import uuid4

import structlog
from pydantic import SecretStr

from app.errors import (
    GrantRejected,
    InternalError,
    ProviderMisconfigured,
    ProviderUnavailable,
    RefreshInProgress,
    StoreError,
    VaultError,
)
from app.refresh.provider_client import ProviderClient, ProviderTokens
from app.refresh.provider_pauses import ProviderPauses
from app.refresh.providers import OAuthProvider
from app.refresh.registry import ProviderRegistry
from app.single_flight import AsyncSingleFlight, SharedCall
from app.tokens import transitions
from app.tokens.cipher import Binding, ReservedKey, TokenCipher
from app.tokens.events import SUPERSEDED, Operation, TokenEvents
from app.tokens.freshness import NotRefreshableError, RefreshPolicy
from app.tokens.models import Caller, RefreshAnswer, StoredToken
from app.tokens.recorded_operation import RecordedOperation
from app.tokens.repository import TokenRepository

ANSWER_LOST: Final = "answer_lost"  # the last refresh may have spent the refresh token without an answer
OUTCOME_LOST: Final = "refresh_outcome_lost"
SPENDING_SECONDS: Final = 15.0  # of the lease that must be left when the provider is asked, which takes up to 10
_FIRST_POLL_SECONDS: Final = 0.05
_LONGEST_POLL_SECONDS: Final = 0.5
_FIRST_WRITE_PAUSE_SECONDS: Final = 0.05
_LONGEST_WRITE_PAUSE_SECONDS: Final = 1.0
_FAILURE_WRITES: Final = 3
_FIRST_RETRY_SECONDS: Final = 10.0
_LONGEST_RETRY_SECONDS: Final = 3_600.0
_DRAIN_SECONDS: Final = 15.0
_log = structlog.get_logger()


class RefreshObserver(Protocol):
    """Gets what happens to refreshes; must neither wait nor raise."""

    def refreshed(self, provider: str, outcome: str, seconds: float) -> None:
        """Count one refresh: `success`, `superseded`, or the code of the error."""
        ...

    def taken_over(self, provider: str) -> None:
        """Count a lease whose holder died."""
        ...

    def unwritten(self, change: int) -> None:
        """Add to the number of new tokens that the store has not taken yet."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """Everything that a refresh needs besides the lease. `refresh_token` has not been spent."""

    provider: OAuthProvider
    refresh_token: SecretStr
    key: ReservedKey


@dataclass(frozen=True, slots=True)
class _Lease:
    """A claimed row; with `answer_may_be_lost` an earlier refresh may have spent its refresh token already."""

    claimed: StoredToken
    answer_may_be_lost: bool


class TokenRefresher:
    """`Refresher` of `app.tokens.freshness`: one refresh of a token at a time, in a task of its own.

    Callers in this process share the task, and may leave it. Replicas exclude each other by the lease in the row.
    """

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        providers: ProviderRegistry,
        client: ProviderClient,
        observer: RefreshObserver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._providers = providers
        self._client = client
        self._observer = observer
        self._now = now
        self._monotonic = monotonic
        self._pauses = ProviderPauses(monotonic=monotonic)
        self._refreshes: AsyncSingleFlight[None] = AsyncSingleFlight()
        self._tasks: set[asyncio.Task[None]] = set()

    def policy_of(self, token: StoredToken) -> RefreshPolicy | None:
        # without a scheme the row is in PulsePlan's formats: a refresh would make it unreadable to PulsePlan's service,
        # and bind a secret for good that may have been copied from another row
        if token.refresh_ciphertext is None or token.encryption_scheme is None:
            return None
        return self._providers.find(token.token_id.provider)

    async def refresh(self, token: StoredToken, *, caller: Caller, until: float) -> None:
        shared = self._refreshes.join(token.id, lambda: self._start(token, caller))
        try:
            async with asyncio.timeout_at(until):
                await shared.result()
        except TimeoutError:
            raise RefreshInProgress("the refresh of this token takes longer than this call may") from None

    async def close(self) -> None:
        """Wait some seconds for refreshes in progress, then end them: an answer that is not stored is lost."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            if late:
                _log.error("refreshes_cut_off", reason=f"{len(late)} refreshes had not ended")
                await asyncio.wait(late)

    def _start(self, token: StoredToken, caller: Caller) -> SharedCall[None]:
        task = asyncio.create_task(self._refresh(token, caller))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return SharedCall(task)

    async def _refresh(self, token: StoredToken, caller: Caller) -> None:
        provider = self._providers.find(token.token_id.provider)
        if provider is None:
            raise NotRefreshableError
        started, outcome = self._monotonic(), InternalError.code
        try:
            outcome = await self._refresh_at(provider, token, caller)
        except VaultError as error:
            outcome = error.code
            raise
        except NotRefreshableError:
            outcome = "not_refreshable"
            raise
        finally:
            if self._observer is not None:
                self._observer.refreshed(provider.name, outcome, self._monotonic() - started)

    async def _refresh_at(self, provider: OAuthProvider, token: StoredToken, caller: Caller) -> str:
        """Refresh the token; return the outcome, which is `superseded` if the row holds something newer."""
        self._pauses.require_open(provider)
        self._require_due(provider, token)
        token_id = token.token_id
        operation = RecordedOperation(
            self._events, Operation.REFRESH, caller, token_id.user_id, token_id, asyncio.timeout(None)
        )
        async with operation:
            operation.note(token)
            prepared = await self._prepare(provider, token, operation)
            await operation.announce()
            claimed_at = self._monotonic()
            lease = await self._claim(provider, token)
            if lease is None:
                operation.outcome = SUPERSEDED
                return SUPERSEDED
            if self._monotonic() - claimed_at > provider.lease_seconds - SPENDING_SECONDS:
                raise RefreshInProgress("this process was stopped for so long that its lease may have ended")
            if not await self._spend(prepared, lease, operation):
                operation.outcome = SUPERSEDED
        return operation.outcome

    def _require_due(self, provider: OAuthProvider, token: StoredToken) -> None:
        """Raise `ProviderUnavailable` before the time at which the next attempt is due."""
        due = token.refresh_state.retry_at
        if provider.minimum_interval_seconds and token.last_refreshed is not None:
            earliest = token.last_refreshed + timedelta(seconds=provider.minimum_interval_seconds)
            due = earliest if due is None else max(due, earliest)
        left = 0.0 if due is None else (due - self._now()).total_seconds()
        if left > 0:
            raise _later("the last refresh failed, and the next attempt is not due yet", left)

    async def _prepare(self, provider: OAuthProvider, token: StoredToken, operation: RecordedOperation) -> _Prepared:
        """Decrypt the refresh token, and take the key for its successor."""
        secrets = await self._cipher.open(token)
        operation.note_opened(token.access_ciphertext, token.refresh_ciphertext)
        if secrets.refresh is None or secrets.refresh == secrets.access:
            raise NotRefreshableError
        key = await self._cipher.reserve(Binding.of(token))
        return _Prepared(provider=provider, refresh_token=secrets.refresh, key=key)

    async def _claim(self, provider: OAuthProvider, token: StoredToken) -> _Lease | None:
        """Take the lease, waiting for another holder's; return `None` once the token's row is newer or gone."""
        holder, current, pause = str(uuid4()), token, _FIRST_POLL_SECONDS
        give_up_at = self._monotonic() + provider.lease_seconds
        while self._monotonic() < give_up_at:
            if await self._take_lease(current, holder, provider.lease_seconds):
                state = current.refresh_state
                if state.holder is not None and self._observer is not None:
                    self._observer.taken_over(provider.name)
                lost = state.holder is not None or state.failure == ANSWER_LOST
                return _Lease(transitions.claimed(current, holder), answer_may_be_lost=lost)
            row = await self._tokens.get(token.token_id)
            if not isinstance(row, StoredToken) or (row.id, row.version) != (token.id, token.version):
                return None
            self._require_due(provider, row)
            if row.refresh_state.holder is not None:
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_POLL_SECONDS)
            current = row
        raise RefreshInProgress("another process has not ended its refresh of this token")

    async def _take_lease(self, token: StoredToken, holder: str, lease_seconds: int) -> bool:
        try:
            return await self._tokens.claim_refresh(token, holder=holder, lease_seconds=lease_seconds)
        except StoreError as error:
            if not error.retryable:
                raise
            row = await self._tokens.get(token.token_id)
            if isinstance(row, StoredToken) and row.refresh_state.holder == holder:
                return True  # the answer was lost, and the claim was not
            raise

    async def _spend(self, prepared: _Prepared, lease: _Lease, operation: RecordedOperation) -> bool:
        """Ask the provider and write the outcome, whatever it is; return whether the row holds the new tokens."""
        provider, claimed, asked_at = prepared.provider, lease.claimed, self._now()
        try:
            answer = await self._client.refresh(
                provider, refresh_token=prepared.refresh_token, base_url=claimed.base_url, scopes=claimed.scopes
            )
        except GrantRejected as error:
            reason = OUTCOME_LOST if lease.answer_may_be_lost else error.reason
            await self._write_failure(claimed, transitions.reauthentication_needed(claimed, reason, now=self._now()))
            raise
        except ProviderMisconfigured as error:
            self._pauses.pause(provider, error)
            failure = ANSWER_LOST if lease.answer_may_be_lost else None
            await self._write_failure(claimed, transitions.refresh_released(claimed, failure=failure))
            raise
        except ProviderUnavailable as error:
            if error.provider_pause_seconds is not None:
                self._pauses.pause(provider, error, seconds=error.provider_pause_seconds)
            failure = ANSWER_LOST if error.may_be_spent or lease.answer_may_be_lost else error.code
            failed = transitions.refresh_failed(claimed, failure, retry_at=self._retry_at(claimed, error))
            await self._write_failure(claimed, failed)
            raise
        after = _with_answer(prepared, claimed, answer, asked_at=asked_at, now=self._now())
        operation.note(after)
        return await self._write(claimed, after)

    def _retry_at(self, claimed: StoredToken, error: ProviderUnavailable) -> datetime:
        """Return the time of the next attempt: the provider's Retry-After, or full jitter over a growing span."""
        longest = min(_FIRST_RETRY_SECONDS * 2 ** min(claimed.refresh_state.attempts, 16), _LONGEST_RETRY_SECONDS)
        seconds = max(random.uniform(1, longest), float(error.provider_pause_seconds or 0))  # noqa: S311  spreads retries
        return self._now() + timedelta(seconds=seconds)

    async def _write(self, claimed: StoredToken, after: StoredToken) -> bool:
        """Write the new tokens, however long the store is down; return whether the row holds them."""
        pause, waiting = _FIRST_WRITE_PAUSE_SECONDS, False
        try:
            while True:
                try:
                    if await self._tokens.settle_refresh(claimed, after):
                        return True
                    row = await self._tokens.get(claimed.token_id)
                    # an earlier attempt whose answer was lost may have written it
                    return isinstance(row, StoredToken) and row.access_ciphertext == after.access_ciphertext
                except StoreError as error:
                    if not waiting:
                        waiting = True
                        self._count_unwritten(1)
                        _log.error("refresh_unwritten", provider=claimed.token_id.provider, reason=error.detail)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_WRITE_PAUSE_SECONDS)
        finally:
            if waiting:
                self._count_unwritten(-1)

    async def _write_failure(self, claimed: StoredToken, after: StoredToken) -> None:
        """Write that the refresh has failed, and end the lease; if the store is down, the lease ends by itself."""
        for attempt in range(_FAILURE_WRITES):
            try:
                await self._tokens.settle_refresh(claimed, after)
            except StoreError:
                await asyncio.sleep(_FIRST_WRITE_PAUSE_SECONDS * 2**attempt)
            else:
                return

    def _count_unwritten(self, change: int) -> None:
        if self._observer is not None:
            self._observer.unwritten(change)


def _with_answer(
    prepared: _Prepared, claimed: StoredToken, answer: ProviderTokens, *, asked_at: datetime, now: datetime
) -> StoredToken:
    """Return the row with the new secrets, encrypted; a refresh token that the answer omits stays (RFC 6749 §6)."""
    lifetime = answer.expires_in_seconds or prepared.provider.default_lifetime_seconds
    refresh_lifetime = answer.refresh_token_expires_in_seconds
    sealed = prepared.key.seal(answer.access_token, answer.refresh_token or prepared.refresh_token)
    said = RefreshAnswer(
        expires_at=asked_at + timedelta(seconds=lifetime),
        refresh_token_expires_at=None if refresh_lifetime is None else asked_at + timedelta(seconds=refresh_lifetime),
        scopes=answer.scopes,
    )
    return transitions.refreshed(claimed, said, sealed, now=now)


def _later(detail: str, seconds: float) -> ProviderUnavailable:
    error = ProviderUnavailable(detail, sent=False)
    error.retry_after_seconds = max(1, min(int(seconds) + 1, int(_LONGEST_RETRY_SECONDS)))
    return error
