"""Exchange of an authorization code for tokens (RFC 6749 §4.1.3), which are stored and never leave the vault."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from app.errors import InvalidRequest, ProviderMisconfigured, VaultError
from app.refresh.authorization import Authorization
from app.refresh.detached_tasks import DetachedTasks
from app.refresh.endpoints import token_endpoint
from app.refresh.observer import RefreshObserver, Unobserved, Unwritten
from app.refresh.provider_client import ProviderClient, ProviderTokens
from app.refresh.providers import OAuthProvider
from app.refresh.registry import ProviderRegistry
from app.tokens.cipher import Binding, TokenCipher
from app.tokens.events import Operation, TokenEvents
from app.tokens.models import Caller, StoreResult, TokenId, TokenInput
from app.tokens.recorded_operation import RecordedOperation
from app.tokens.repository import TokenRepository, find_token
from app.tokens.transitions import checked_metadata
from app.tokens.vault import TokenVault

WRITE_SECONDS: Final = 30.0  # a code cannot be redeemed again, so an outage of the store is waited out
_PAUSE_SECONDS: Final = 0.5
_log = structlog.get_logger()


class CodeExchange:
    """Redeems authorization codes and stores the tokens. The caller never gets them."""

    def __init__(
        self,
        *,
        vault: TokenVault,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        providers: ProviderRegistry,
        client: ProviderClient,
        observer: RefreshObserver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._vault = vault
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._providers = providers
        self._client = client
        self._observer = observer or Unobserved()
        self._now = now
        self._tasks = DetachedTasks()

    async def exchange(self, token_id: TokenId, given: Authorization, *, caller: Caller) -> StoreResult:
        """Redeem the code and store the tokens, in a task that a caller may leave.

        Raises `InvalidRequest` if the provider is not configured or the base URL names none of its hosts,
        `GrantRejected` if it refuses the code, another `ProviderError`, or what a store raises.
        """
        return await self._tasks.run(self._exchange(token_id, given, caller))

    async def close(self) -> None:
        """Wait some seconds for exchanges in progress, then end them."""
        await self._tasks.close()

    async def _exchange(self, token_id: TokenId, given: Authorization, caller: Caller) -> StoreResult:
        provider = self._providers.find(token_id.provider)
        if provider is None:
            raise InvalidRequest.of_field("provider", "the provider has no entry in OAUTH_PROVIDERS_FILE")
        operation = RecordedOperation(self._events, Operation.EXCHANGE, caller, token_id.user_id, token_id, None)
        async with operation:
            # before the code is spent: what a store would refuse, the provider's host, that the store answers, and a
            # key, which storing the tokens finds in memory
            checked_metadata(given.metadata)
            _require_endpoint(provider, given.base_url)
            await find_token(self._tokens, token_id)
            await self._cipher.reserve(Binding(token_id, given.base_url))
            await operation.announce()
            asked_at = self._now()
            answer = await self._client.exchange(
                provider,
                code=given.code,
                redirect_uri=given.redirect_uri,
                code_verifier=given.code_verifier,
                base_url=given.base_url,
            )
            with Unwritten(self._observer, provider.name) as unwritten:
                return await self._store(token_id, _input(provider, given, answer, asked_at), caller, unwritten)

    async def _store(self, token_id: TokenId, token: TokenInput, caller: Caller, unwritten: Unwritten) -> StoreResult:
        give_up_at = asyncio.get_running_loop().time() + WRITE_SECONDS
        while True:
            try:
                return await self._vault.store(token_id, token, caller=caller)
            except VaultError as error:
                if not error.retryable or asyncio.get_running_loop().time() > give_up_at:
                    _log.error("exchange_unwritten", provider=token_id.provider, reason=error.detail)
                    raise
                unwritten.is_new()
            await asyncio.sleep(_PAUSE_SECONDS)


def _require_endpoint(provider: OAuthProvider, base_url: str | None) -> None:
    try:
        token_endpoint(provider, base_url)
    except ProviderMisconfigured as error:  # of a stored token; here it is the caller's mistake
        raise InvalidRequest.of_field("base_url", error.detail) from None


def _input(provider: OAuthProvider, given: Authorization, answer: ProviderTokens, asked_at: datetime) -> TokenInput:
    lifetime = answer.expires_in_seconds or provider.default_lifetime_seconds
    return TokenInput(
        access_token=answer.access_token,
        refresh_token=answer.refresh_token,
        expires_at=asked_at + timedelta(seconds=lifetime),
        scopes=answer.scopes or (),
        email=given.email,
        base_url=given.base_url,
        metadata=given.metadata,
    )
