"""Both secrets of a token, encrypted and decrypted without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

from pydantic import SecretStr

from app.errors import IntegrityError, KeyDenied, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.key_derivation import KeyDerivationQueue
from app.security.strategy import KeyNotCached, Sealed, SealingKey
from app.single_flight import AsyncSingleFlight, SharedCall
from app.tokens.models import StoredToken, TokenId, current_service

T = TypeVar("T")
_ROUNDS = 3
WAITING_CALLS = 64
KEY_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """Two ciphertexts of one scheme, because a row has one column for the scheme."""

    access: Sealed
    refresh: Sealed | None


class Secrets(NamedTuple):
    """The plaintexts of a token's two secrets."""

    access: SecretStr
    refresh: SecretStr | None


class Binding(NamedTuple):
    """What both secrets of a token are bound to, besides their column."""

    token_id: TokenId
    base_url: str | None

    @classmethod
    def of(cls, token: StoredToken) -> Binding:
        return cls(token.token_id, token.base_url)

    def context(self, field: SecretField) -> TokenContext:
        token_id = self.token_id
        return TokenContext(token_id.user_id, token_id.provider, token_id.service_type, field, self.base_url or "")


@dataclass(frozen=True, slots=True)
class ReservedKey:
    """A key for the secrets of one token that are not known yet: encrypting them waits for nothing."""

    binding: Binding
    key: SealingKey

    def seal(self, access: SecretStr, refresh: SecretStr | None) -> SealedSecrets:
        """Encrypt both; raises `InvalidRequest` for a text that is too long or not UTF-8."""
        return _seal_both(self.key.seal, self.binding, Secrets(access, refresh))


class TokenCipher:
    """Encrypts and decrypts a token's secrets, each bound to its token id, column and base URL.

    With its keys in memory a call takes microseconds and runs on the event loop. If a key has to be fetched or derived
    first, the call is made again in a thread, one call per missing key, and this class alone decides that. All keys of
    one operation share one deadline, `key_deadline`. Methods raise an `EncryptionError`.
    """

    def __init__(
        self,
        *,
        encryption: EncryptionService,
        derivations: KeyDerivationQueue | None = None,
        key_seconds: float = KEY_SECONDS,
    ) -> None:
        self._encryption = encryption
        self._key_seconds = key_seconds
        self._shared_calls: AsyncSingleFlight[Any] = AsyncSingleFlight()
        self._derivations = derivations or KeyDerivationQueue()
        # a separate pool: while KMS hangs, calls that wait for it must not take the threads of everything else
        self._threads = ThreadPoolExecutor(WAITING_CALLS, thread_name_prefix="cipher")

    @property
    def primary_scheme(self) -> str | None:
        """The primary's scheme; `None` until KMS has answered with the ARN of its key."""
        return self._encryption.primary_scheme

    def key_deadline(self) -> float:
        """Return the time on the event loop's clock until which an operation that starts now may wait for keys."""
        return asyncio.get_running_loop().time() + self._key_seconds

    async def seal(
        self, binding: Binding, access: SecretStr, refresh: SecretStr | None, *, until: float | None = None
    ) -> SealedSecrets:
        """Encrypt both under the primary, or both under the fallback if KMS is unavailable and one is configured."""
        secrets = Secrets(access, refresh)
        try:
            return await self._seal(self._encryption.seal_as_primary, binding, secrets, until)
        except KeyUnavailable as error:
            if not self._encryption.has_fallback:
                raise
            sealed = await self._seal(self._encryption.seal_as_fallback, binding, secrets)  # needs no key service
            self._encryption.note_fallback(error)
            return sealed

    async def reserve(self, binding: Binding) -> ReservedKey:
        """Take a key of the primary, or of the fallback as `seal` does, for secrets that are not known yet."""
        context = binding.context(SecretField.ACCESS_TOKEN)
        try:
            key = await self._in_thread_if_needed(partial(self._encryption.reserve_as_primary, context))
        except KeyUnavailable as error:
            if not self._encryption.has_fallback:
                raise
            key = await self._in_thread_if_needed(partial(self._encryption.reserve_as_fallback, context))
            self._encryption.note_fallback(error)
        return ReservedKey(binding, key)

    def open_now(self, token: StoredToken, *, include_refresh: bool) -> Secrets:
        """Decrypt with keys in memory, the refresh token only if asked; raises `KeyNotCached` if a key is missing."""
        refresh = token.refresh_ciphertext if include_refresh else None
        return self._open_both(Binding.of(token), token.access_ciphertext, refresh, token.encryption_scheme, wait=False)

    async def open(self, token: StoredToken) -> Secrets:
        """Decrypt both."""
        ciphertexts = token.access_ciphertext, token.refresh_ciphertext
        call = partial(self._open_both, Binding.of(token), *ciphertexts, token.encryption_scheme)
        return await self._in_thread_if_needed(call)

    async def seal_as_primary(self, binding: Binding, secrets: Secrets) -> SealedSecrets:
        """Encrypt both under the primary, never the fallback, and prove that the ciphertexts open again."""

        def seal(*, wait: bool) -> SealedSecrets:
            sealed = _seal_both(partial(self._encryption.seal_as_primary, wait=wait), binding, secrets)
            refresh = None if sealed.refresh is None else sealed.refresh.ciphertext
            if self._open_both(binding, sealed.access.ciphertext, refresh, sealed.access.scheme, wait=wait) != secrets:
                raise IntegrityError("a new ciphertext does not give its plaintext back; nothing was written")
            return sealed

        return await self._in_thread_if_needed(seal)

    async def prove_primary(self) -> None:
        """Prove that the primary encrypts and decrypts; afterwards its scheme is known."""
        nowhere = Binding(TokenId("self-test", "self-test"), None)
        await self.seal_as_primary(nowhere, Secrets(SecretStr("self-test"), None))

    async def open_access(self, token: StoredToken, *, until: float | None = None) -> SecretStr:
        """Decrypt the access token."""
        ciphertext, claimed = token.access_ciphertext, token.encryption_scheme
        call = partial(self._open, Binding.of(token), ciphertext, claimed, SecretField.ACCESS_TOKEN)
        return await self._in_thread_if_needed(call, until)

    async def open_refresh(self, token: StoredToken, *, until: float | None = None) -> SecretStr | None:
        """Decrypt the refresh token; return `None` if there is none."""
        ciphertext, claimed = token.refresh_ciphertext, token.encryption_scheme
        if ciphertext is None:
            return None
        call = partial(self._open, Binding.of(token), ciphertext, claimed, SecretField.REFRESH_TOKEN)
        return await self._in_thread_if_needed(call, until)

    async def _seal(
        self, seal: Callable[..., Sealed], binding: Binding, secrets: Secrets, until: float | None = None
    ) -> SealedSecrets:
        def seal_both(*, wait: bool) -> SealedSecrets:
            return _seal_both(partial(seal, wait=wait), binding, secrets)

        return await self._in_thread_if_needed(seal_both, until)

    def _open_both(
        self, binding: Binding, access: str, refresh: str | None, claimed: str | None, *, wait: bool
    ) -> Secrets:
        return Secrets(
            self._open(binding, access, claimed, SecretField.ACCESS_TOKEN, wait=wait),
            None if refresh is None else self._open(binding, refresh, claimed, SecretField.REFRESH_TOKEN, wait=wait),
        )

    def _open(
        self, binding: Binding, ciphertext: str, claimed: str | None, field: SecretField, *, wait: bool
    ) -> SecretStr:
        return SecretStr(self._encryption.open(ciphertext, binding.context(field), claimed=claimed, wait=wait))

    async def _in_thread_if_needed(self, call: Callable[..., T], until: float | None = None) -> T:
        try:
            return call(wait=False)
        except KeyNotCached as reason:
            missing = reason
        try:
            async with asyncio.timeout_at(until or self.key_deadline()):
                return await self._once_cached(call, missing)
        except TimeoutError:
            raise KeyUnavailable("the key was not available in time") from None

    async def _once_cached(self, call: Callable[..., T], missing: KeyNotCached) -> T:
        """Make the call in a thread, or wait for the call that fetches the same key and then make it here."""
        while True:
            key = _call_name(missing)
            shared = self._shared_calls.get(key)
            if shared is None:
                own: SharedCall[T] = self._shared_calls.join(key, partial(self._start, call, missing))
                return await own.result()
            error = await shared.error()
            try:
                return call(wait=False)
            except KeyNotCached as reason:
                missing = reason
            if error is None or _call_name(missing) != key:
                continue
            if isinstance(error, KeyUnavailable | KeyDenied):
                raise error.copy() from None
            # The other ciphertext is damaged, so its call left no key; this one may be intact. If many are damaged,
            # they must not wait for one another: each gets a thread, and the threads share the requests to KMS.
            return await self._start(call, missing).result()

    def _start(self, call: Callable[..., T], missing: KeyNotCached) -> SharedCall[T]:
        """Start the call in a thread.

        A derivation is cancelled when nobody waits for it any more, because it takes a processor from others. A
        request to a key service goes on: its thread is taken in any case, and the key serves the next caller.
        """
        waiting_call = partial(copy_context().run, call, wait=True)
        if missing.derived:
            derivation = self._derivations.run(waiting_call, service=current_service.get())
            return SharedCall(asyncio.create_task(derivation), cancelled_when_unawaited=True)
        return SharedCall(asyncio.get_running_loop().run_in_executor(self._threads, waiting_call))


def _call_name(missing: KeyNotCached) -> Hashable:
    """Name a shared call by its key, and a derivation also by the calling service, which has its own queue."""
    return (current_service.get(), missing.key) if missing.derived else missing.key


def _seal_both(seal: Callable[[str, TokenContext], Sealed], binding: Binding, secrets: Secrets) -> SealedSecrets:
    for _ in range(_ROUNDS):
        access = seal(secrets.access.get_secret_value(), binding.context(SecretField.ACCESS_TOKEN))
        if secrets.refresh is None:
            return SealedSecrets(access, None)
        refresh = seal(secrets.refresh.get_secret_value(), binding.context(SecretField.REFRESH_TOKEN))
        if refresh.scheme == access.scheme:  # the key or the strategy may have changed between the two
            return SealedSecrets(access, refresh)
    raise KeyUnavailable("the encryption key keeps changing; nothing was written")
