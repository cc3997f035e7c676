"""The refresh of one token: everything that can fail is proven first, then the refresh token is spent, once.

docs/refresh.md has the steps and what a crash at each leaves behind.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import uuid4

import structlog
from pydantic import SecretStr

from app.errors import (
    GrantRejected,
    KeyUnavailable,
    ProviderError,
    ProviderMisconfigured,
    ProviderUnavailable,
    RefreshInProgress,
    StoreError,
)
from app.refresh.detached_tasks import DetachedTasks
from app.refresh.endpoints import token_endpoint
from app.refresh.lease import TAKEOVER_SECONDS, has_the_same_lease, lease_clock, take_lease, under_the_next_lease
from app.refresh.observer import RefreshObserver, Unobserved, Unwritten
from app.refresh.provider_client import ProviderClient, ProviderTokens
from app.refresh.provider_pauses import ProviderPauses
from app.refresh.providers import OAuthProvider, Rotation
from app.refresh.registry import ProviderRegistry
from app.refresh.spool_recovery import SpoolRecovery
from app.refresh.successor import keep_successor
from app.single_flight import AsyncSingleFlight, SharedCall
from app.tokens import transitions
from app.tokens.cipher import Binding, ReservedKey, TokenCipher
from app.tokens.events import NOT_REFRESHABLE, SUPERSEDED, Operation, TokenEvents
from app.tokens.freshness import NotRefreshableError, RefreshPolicy
from app.tokens.models import ANSWER_LOST, OUTCOME_LOST, Caller, RefreshAnswer, StoredToken, UnreadableRow
from app.tokens.recorded_operation import RecordedOperation
from app.tokens.repository import TokenRepository

SPENDING_SECONDS: Final = 15.0  # of the lease that must be left when the provider is asked, which takes up to 10
_FIRST_POLL_SECONDS: Final = 0.05
LONGEST_POLL_SECONDS: Final = 0.5
_FIRST_WRITE_PAUSE_SECONDS: Final = 0.05
_LONGEST_WRITE_PAUSE_SECONDS: Final = 1.0
_FAILURE_WRITES: Final = 3
_FIRST_RETRY_SECONDS: Final = 10.0
_LONGEST_RETRY_SECONDS: Final = 300.0  # after an outage, a token waits for no longer
_LONGEST_RETRY_AFTER_SECONDS: Final = 3_600
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """Everything that a refresh needs besides the lease. `refresh_token` has not been spent."""

    provider: OAuthProvider
    refresh_token: SecretStr
    key: ReservedKey


@dataclass(frozen=True, slots=True)
class _Lease:
    """A claimed row. `claimed_at` is the time on the process's clock before the claim was sent.

    With `answer_may_be_lost` an earlier refresh may have spent its refresh token already.
    """

    claimed: StoredToken
    claimed_at: float
    answer_may_be_lost: bool

    def released(self, *, retry_at: datetime | None = None) -> StoredToken:
        """Return the row after a refresh that says nothing about the token.

        If an answer may be lost, its holder may still bring it before `retry_at`.
        """
        if not self.answer_may_be_lost:
            return transitions.refresh_released(self.claimed, failure=None)
        return transitions.refresh_released(self.claimed, failure=ANSWER_LOST, retry_at=retry_at)


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
        spool: SpoolRecovery | None = None,
        observer: RefreshObserver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = lease_clock,
        takeover_seconds: float = TAKEOVER_SECONDS,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._providers = providers
        self._client = client
        self._spool = spool
        self._observer = observer or Unobserved()
        self._now = now
        self._monotonic = monotonic
        self._takeover_seconds = takeover_seconds
        self._pauses = ProviderPauses(monotonic=monotonic)
        self._refreshes: AsyncSingleFlight[None] = AsyncSingleFlight()
        self._tasks = DetachedTasks()
        self._closing = False

    def policy_of(self, token: StoredToken) -> RefreshPolicy | None:
        return self._provider_of(token)

    def pause_of(self, provider: OAuthProvider, base_url: str | None) -> ProviderError | None:
        """Return the error that every token of the provider, or of the host, gets now; `None` if it is not paused."""
        try:
            self._pauses.require_open(provider, base_url)
        except ProviderError as error:
            return error
        return None

    async def refresh(self, token: StoredToken, *, caller: Caller, until: float) -> None:
        shared = self._refreshes.get(token.id)
        if shared is None:
            if self._closing or asyncio.get_running_loop().time() >= until:
                raise RefreshInProgress("this call has no time left for a refresh")
            shared = self._refreshes.join(token.id, lambda: SharedCall(self._tasks.start(self._refresh(token, caller))))
        try:
            async with asyncio.timeout_at(until):
                await shared.result()
        except TimeoutError:
            raise RefreshInProgress("the refresh of this token takes longer than this call may") from None

    async def close(self) -> int:
        """Begin nothing more, wait some seconds for refreshes in progress, then end them; return how many were ended.

        A refresh that has no lease yet gives up. An answer that cannot be stored by then is lost unless
        it is in the spool.
        """
        self._closing = True
        late = await self._tasks.close()
        if late:
            _log.error("refreshes_cut_off", reason=f"{late} refreshes had not ended")
        return late

    async def _refresh(self, token: StoredToken, caller: Caller) -> None:
        provider = self._provider_of(token)
        if provider is None:
            raise NotRefreshableError
        self._pauses.require_open(provider, token.base_url)
        self._require_due(token)
        token_id = token.token_id
        operation = RecordedOperation(self._events, Operation.REFRESH, caller, token_id.user_id, token_id, None)
        began_at = self._monotonic()
        try:
            async with operation:
                try:
                    await self._refresh_once(provider, token, operation)
                except NotRefreshableError:
                    operation.outcome = NOT_REFRESHABLE
        finally:
            self._observer.refreshed(provider.name, operation.outcome, self._monotonic() - began_at)
        if operation.outcome == NOT_REFRESHABLE:
            raise NotRefreshableError

    async def _refresh_once(self, provider: OAuthProvider, token: StoredToken, operation: RecordedOperation) -> None:
        operation.note(token)
        prepared = await self._prepare(provider, token, operation)
        await operation.announce()
        lease = await self._claim(provider, token)
        if lease is None:
            operation.outcome = SUPERSEDED
            return
        if not self._may_spend(provider, lease):
            retry_at = self._now() + timedelta(seconds=self._takeover_seconds)
            await self._write_failure(lease.claimed, lease.released(retry_at=retry_at))
            raise RefreshInProgress("this process is ending, or was stopped until its lease had nearly ended")
        if not await self._spend(prepared, lease, operation):
            operation.outcome = SUPERSEDED

    def _provider_of(self, token: StoredToken) -> OAuthProvider | None:
        # without a scheme the row is in PulsePlan's formats: a refresh would make it unreadable to PulsePlan's service,
        # and bind a secret for good that may have been copied from another row
        if token.refresh_ciphertext is None or token.encryption_scheme is None:
            return None
        return self._providers.find(token.token_id.provider)

    def _require_due(self, token: StoredToken) -> None:
        """Raise `ProviderUnavailable`, or the error of the last attempt, before the next one is due."""
        due = token.refresh_state.retry_at
        left = 0.0 if due is None else (due - self._now()).total_seconds()
        if left > 0:
            detail = "the next refresh of this token is not due yet, because of the last one"
            if token.refresh_state.failure == ProviderMisconfigured.code:
                raise ProviderMisconfigured(detail, concerns_provider=False)
            raise _later(detail, left)

    async def _prepare(self, provider: OAuthProvider, token: StoredToken, operation: RecordedOperation) -> _Prepared:
        """Decrypt the refresh token, which also proves the base URL, and take the key for its successor."""
        token_endpoint(provider, token.base_url)
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

        def may_wait() -> bool:
            return self._monotonic() < give_up_at and not self._closing

        while may_wait():
            state = current.refresh_state
            if self._spool is not None and state.holder is not None:
                await self._spool.finish(state.holder)
            asked_at = self._monotonic()
            if await take_lease(
                self._tokens, current, holder=holder, lease_seconds=provider.lease_seconds, may_wait=may_wait
            ):
                lost = state.is_refreshing or state.failure == ANSWER_LOST
                lease = _Lease(transitions.claimed(current, holder), asked_at, answer_may_be_lost=lost)
                return lease if state.holder is None else await self._taken_over(provider, lease)
            row = await self._tokens.get(token.token_id)
            if not isinstance(row, StoredToken) or not _is_same_token(row, token):
                return None
            self._require_due(row)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_SECONDS)
            current = row
        raise RefreshInProgress("another process has not ended its refresh of this token")

    async def _taken_over(self, provider: OAuthProvider, lease: _Lease) -> _Lease | None:
        """Give the former holder of the lease time to write its answer; return `None` once it has.

        Only seconds in which this process runs and the store answers count; the claim has shown that it takes writes.
        """
        self._observer.taken_over(provider.name)
        _log.warning("refresh_taken_over", provider=provider.name)
        if provider.rotation is not Rotation.SINGLE_USE or not lease.answer_may_be_lost:
            return lease
        waited = 0.0
        while self._may_spend(provider, lease):
            try:
                row = (await self._tokens.read_back([lease.claimed.id])).get(lease.claimed.id)
            except StoreError:
                waited = 0.0
            else:
                if not isinstance(row, StoredToken) or not has_the_same_lease(row, lease.claimed):
                    return None
                if waited >= self._takeover_seconds:
                    break
            await asyncio.sleep(LONGEST_POLL_SECONDS)
            waited += LONGEST_POLL_SECONDS
        return lease

    def _may_spend(self, provider: OAuthProvider, lease: _Lease) -> bool:
        """Whether enough of the lease is left to ask the provider."""
        left = provider.lease_seconds - (self._monotonic() - lease.claimed_at)
        return left >= SPENDING_SECONDS and not self._closing

    async def _spend(self, prepared: _Prepared, lease: _Lease, operation: RecordedOperation) -> bool:
        """Ask the provider and write the outcome, whatever it is; return whether the row is what this refresh left."""
        provider, claimed, asked_at = prepared.provider, lease.claimed, self._now()
        try:
            answer = await self._client.refresh(
                provider,
                refresh_token=prepared.refresh_token,
                base_url=prepared.key.binding.base_url,
                scopes=claimed.scopes,
            )
            after = _with_answer(prepared, claimed, answer, asked_at=asked_at, now=self._now())
        except GrantRejected as error:
            lost = lease.answer_may_be_lost and provider.rotation is Rotation.SINGLE_USE
            reason = OUTCOME_LOST if lost else error.reason
            marked = transitions.reauthentication_needed(claimed, reason, now=self._now())
            if not await self._write_failure(claimed, marked):
                return False  # the refusal is of a token that the row no longer holds
            self._observer.reauthentication_needed(provider.name, outcome_lost=lost)
            raise
        except ProviderMisconfigured as error:
            if error.concerns_provider:
                self._pauses.pause(provider, claimed.base_url, error)
                await self._write_failure(claimed, lease.released())
            else:
                await self._put_off(lease, error.code)
            raise
        except ProviderUnavailable as error:
            if error.provider_pause_seconds is not None:
                self._pauses.pause(provider, claimed.base_url, error, seconds=error.provider_pause_seconds)
            failure = ANSWER_LOST if error.may_be_spent else error.code
            await self._put_off(lease, failure, at_least_seconds=error.provider_pause_seconds or 0)
            raise
        except Exception:
            await self._put_off(lease, ANSWER_LOST)  # a defect: the request may have been sent
            raise
        operation.note(after)
        if self._spool is None:
            return await self._write(provider, claimed, after)
        async with self._spool.kept(claimed, after, intent=operation.intent):
            return await self._write(provider, claimed, after)

    async def _put_off(self, lease: _Lease, failure: str, *, at_least_seconds: float = 0) -> None:
        """Write a failure and the time of the next attempt: full jitter over a span that grows with each attempt."""
        claimed = lease.claimed
        longest = min(_FIRST_RETRY_SECONDS * 2 ** min(claimed.refresh_state.attempts, 16), _LONGEST_RETRY_SECONDS)
        seconds = max(random.uniform(1, longest), at_least_seconds)  # noqa: S311  spreads retries
        failure = ANSWER_LOST if lease.answer_may_be_lost else failure
        retry_at = self._now() + timedelta(seconds=seconds)
        await self._write_failure(claimed, transitions.refresh_failed(claimed, failure, retry_at=retry_at))

    async def _write(self, provider: OAuthProvider, claimed: StoredToken, after: StoredToken) -> bool:
        """Write the new tokens, however long the store is down; return whether the row holds them.

        It does not if it was replaced or deleted. A row that was replaced and has the spent refresh token gets its
        successor all the same. A refresh of a single-use token that has taken over, and waits, loses its lease.
        """
        pause = _FIRST_WRITE_PAUSE_SECONDS
        with Unwritten(self._observer, provider.name) as unwritten:
            while True:
                refused = False
                try:
                    if await self._tokens.settle_refresh(claimed, after):
                        return True
                    refused = True
                except StoreError as error:
                    if unwritten.is_new():
                        _log.error("refresh_unwritten", provider=provider.name, reason=error.detail)
                with suppress(StoreError, KeyUnavailable, RefreshInProgress):
                    row = (await self._tokens.read_back([claimed.id])).get(claimed.id)
                    if row is None or (refused and isinstance(row, UnreadableRow)):
                        return False
                    if isinstance(row, UnreadableRow):
                        raise row.error()  # it may still be this refresh's
                    if row.access_ciphertext == after.access_ciphertext:
                        return True  # an earlier attempt, whose answer was lost, has written it
                    if not has_the_same_lease(row, claimed):
                        waiting = under_the_next_lease(claimed, row)
                        if waiting is None or provider.rotation is not Rotation.SINGLE_USE:
                            await keep_successor(self._tokens, self._cipher, claimed, after, now=self._now())
                            return False
                        claimed, generation = waiting, waiting.refresh_state.generation
                        after = replace(after, refresh_state=replace(after.refresh_state, generation=generation))
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LONGEST_WRITE_PAUSE_SECONDS)

    async def _write_failure(self, claimed: StoredToken, after: StoredToken) -> bool:
        """Write that the refresh has failed, and end the lease; return `False` if the row is no longer this refresh's.

        If the store is down, the lease ends by itself.
        """
        for attempt in range(_FAILURE_WRITES):
            try:
                if await self._tokens.settle_refresh(claimed, after):
                    return True
                row = (await self._tokens.read_back([claimed.id])).get(claimed.id) if attempt else None
                # an earlier attempt, whose answer was lost, may have written it
                return isinstance(row, StoredToken) and row.refresh_state == after.refresh_state
            except StoreError:
                await asyncio.sleep(_FIRST_WRITE_PAUSE_SECONDS * 2**attempt)
        return True


def _with_answer(
    prepared: _Prepared, claimed: StoredToken, answer: ProviderTokens, *, asked_at: datetime, now: datetime
) -> StoredToken:
    """Return the row with the new secrets, encrypted; a refresh token that the answer omits stays (RFC 6749 §6)."""
    lifetime = answer.expires_in_seconds or prepared.provider.default_lifetime_seconds
    refresh_lifetime, interval = answer.refresh_token_expires_in_seconds, prepared.provider.minimum_interval_seconds
    sealed = prepared.key.seal(answer.access_token, answer.refresh_token or prepared.refresh_token)
    said = RefreshAnswer(
        expires_at=asked_at + timedelta(seconds=lifetime),
        refresh_token_expires_at=None if refresh_lifetime is None else asked_at + timedelta(seconds=refresh_lifetime),
        scopes=answer.scopes,
        next_refresh_at=asked_at + timedelta(seconds=interval) if interval else None,
    )
    return transitions.refreshed(claimed, said, sealed, now=now)


def _is_same_token(row: StoredToken, token: StoredToken) -> bool:
    """Whether the row still holds the token whose secrets were decrypted, perhaps rewrapped."""
    same = (row.id, row.version, Binding.of(row)) == (token.id, token.version, Binding.of(token))
    return same and row.encryption_scheme is not None


def _later(detail: str, seconds: float) -> ProviderUnavailable:
    error = ProviderUnavailable(detail, sent=False)
    error.retry_after_seconds = max(1, min(int(seconds) + 1, _LONGEST_RETRY_AFTER_SECONDS))
    return error
