"""A token's two secrets, sealed and opened together, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from pydantic import SecretStr

from app.errors import IntegrityError, KeyDenied, KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.key_derivation import KeyDerivationQueue
from app.security.service import EncryptionService
from app.security.strategy import KeyNotCached, Sealed
from app.tokens.flight import Flight
from app.tokens.models import StoredToken, TokenId, current_service

T = TypeVar("T")
_ROUNDS = 3
WAITING_CALLS = 64
KEY_SECONDS = 2.5


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """`access` also tells how both were made: one row has one scheme."""

    access: Sealed
    refresh: Sealed | None


@dataclass(frozen=True, slots=True)
class Secrets:
    """A token's two secrets in the clear."""

    access: SecretStr
    refresh: SecretStr | None


class TokenCipher:
    """Binds each secret to its token id and column.

    Encryption takes microseconds and runs right here. Only where a key must first be fetched or derived is the call
    made again in a thread, one for each key that is missing, and this module is where that is decided. Whoever waits
    for keys waits until `key_deadline`, however many of them an operation needs.
    """

    def __init__(self, *, encryption: EncryptionService, derivations: KeyDerivationQueue | None = None) -> None:
        self._encryption = encryption
        self._flights: dict[Hashable, Flight] = {}
        self._derivations = derivations or KeyDerivationQueue()
        # a pool of its own: while KMS hangs, its waiters must not take the threads of everything else
        self._threads = ThreadPoolExecutor(WAITING_CALLS, thread_name_prefix="cipher")

    @property
    def primary_scheme(self) -> str | None:
        """The scheme of what `seal` makes now, unless the fallback makes it; `None` while KMS has not named its key."""
        return self._encryption.primary_scheme

    def key_deadline(self) -> float:
        """Return until when, on the event loop's clock, an operation that begins now may wait for keys."""
        return asyncio.get_running_loop().time() + KEY_SECONDS

    async def seal(
        self, token_id: TokenId, access: SecretStr, refresh: SecretStr | None, *, until: float | None = None
    ) -> SealedSecrets:
        """Encrypt both under the primary, or, where it is configured and KMS is unavailable, both under the fallback.

        Raises an `EncryptionError`.
        """
        secrets = Secrets(access, refresh)
        try:
            return await self._seal(self._encryption.seal_as_primary, token_id, secrets, until)
        except KeyUnavailable as error:
            if not self._encryption.has_fallback:
                raise
            sealed = await self._seal(self._encryption.seal_as_fallback, token_id, secrets)  # no key service is asked
            self._encryption.note_fallback(error)
            return sealed

    async def open(self, token: StoredToken) -> Secrets:
        """Decrypt both; raises an `EncryptionError`."""

        def open_both(*, wait: bool) -> Secrets:
            access = self._open(token.access_ciphertext, token.token_id, SecretField.ACCESS_TOKEN, wait=wait)
            refresh = None
            if token.refresh_ciphertext is not None:
                refresh = self._open(token.refresh_ciphertext, token.token_id, SecretField.REFRESH_TOKEN, wait=wait)
            return Secrets(access, refresh)

        return await self._off_the_loop_if_needed(open_both)

    async def seal_as_primary(self, token_id: TokenId, secrets: Secrets) -> SealedSecrets:
        """Encrypt both under the primary and no other, and prove that they open again; raises an `EncryptionError`."""

        def seal(*, wait: bool) -> SealedSecrets:
            sealed = _seal_both(partial(self._encryption.seal_as_primary, wait=wait), token_id, secrets)
            access = self._open(sealed.access.ciphertext, token_id, SecretField.ACCESS_TOKEN, wait=wait)
            refresh = None
            if sealed.refresh is not None:
                refresh = self._open(sealed.refresh.ciphertext, token_id, SecretField.REFRESH_TOKEN, wait=wait)
            if Secrets(access, refresh) != secrets:
                raise IntegrityError("a new ciphertext does not give its plaintext back; nothing was written")
            return sealed

        return await self._off_the_loop_if_needed(seal)

    async def prove_primary(self) -> None:
        """Prove that the primary seals and opens; afterwards its scheme is known. Raises an `EncryptionError`."""
        nobody = TokenId("self-test", "self-test")
        await self.seal_as_primary(nobody, Secrets(SecretStr("self-test"), None))

    async def open_access(self, token: StoredToken) -> SecretStr:
        """Decrypt the access token; raises an `EncryptionError`."""
        return await self._open_one(token.access_ciphertext, token.token_id, SecretField.ACCESS_TOKEN, None)

    async def open_refresh(self, token: StoredToken, *, until: float | None = None) -> SecretStr | None:
        """Decrypt the refresh token, `None` where there is none; raises an `EncryptionError`."""
        if token.refresh_ciphertext is None:
            return None
        return await self._open_one(token.refresh_ciphertext, token.token_id, SecretField.REFRESH_TOKEN, until)

    def scheme_of(self, ciphertext: str) -> str:
        """Name how a ciphertext was made; raises an `EncryptionError` where no reader is configured for it."""
        return self._encryption.scheme_of(ciphertext)

    async def _seal(
        self, seal: Callable[..., Sealed], token_id: TokenId, secrets: Secrets, until: float | None = None
    ) -> SealedSecrets:
        def seal_both(*, wait: bool) -> SealedSecrets:
            return _seal_both(partial(seal, wait=wait), token_id, secrets)

        return await self._off_the_loop_if_needed(seal_both, until)

    async def _open_one(self, ciphertext: str, token_id: TokenId, field: SecretField, until: float | None) -> SecretStr:
        return await self._off_the_loop_if_needed(partial(self._open, ciphertext, token_id, field), until)

    def _open(self, ciphertext: str, token_id: TokenId, field: SecretField, *, wait: bool) -> SecretStr:
        return SecretStr(self._encryption.open(ciphertext, _context(token_id, field), wait=wait))

    async def _off_the_loop_if_needed(self, call: Callable[..., T], until: float | None = None) -> T:
        try:
            return call(wait=False)
        except KeyNotCached as reason:
            missing = reason
        try:
            async with asyncio.timeout_at(until or self.key_deadline()):
                return await self._once_cached(call, missing)
        except TimeoutError:
            raise KeyUnavailable("the key was not there in time") from None

    async def _once_cached(self, call: Callable[..., T], missing: KeyNotCached) -> T:
        """Wait for a key in a thread, or beside a call that is waiting for it already.

        The call goes on when its caller has gone away, for others may wait beside it.
        """
        alone = False
        while True:
            key = _flight_of(missing)
            flight = self._flights.get(key) if key is not None and not alone else None
            if flight is None:
                flight = self._in_a_thread(partial(copy_context().run, call, wait=True), derives=missing.derived)
                if not alone and key is not None:
                    self._flights[key] = flight
                    flight.result.add_done_callback(partial(self._landed, key))
                with flight.awaited():
                    return await asyncio.shield(flight.result)
            with flight.awaited():
                await asyncio.wait([flight.result])
            try:
                return call(wait=False)
            except KeyNotCached as reason:
                missing = reason
                error = None if flight.result.cancelled() else flight.result.exception()
                if _flight_of(missing) == key and isinstance(error, KeyUnavailable | KeyDenied):
                    # a copy: as one object it would gather the traceback of everyone who raises it
                    raise copy.copy(error) from None
                # A broken ciphertext leaves no key behind. Ours may be whole; and if it is not, a crowd would wait one
                # for the other, where threads of their own share what KMS says.
                alone = _flight_of(missing) == key and error is not None

    def _in_a_thread(self, call: Callable[[], Any], *, derives: bool) -> Flight:
        if derives:
            return Flight(self._derivations.submit(call, service=current_service.get()), derives)
        return Flight(asyncio.get_running_loop().run_in_executor(self._threads, call), derives)

    def _landed(self, key: Hashable, result: asyncio.Future[Any]) -> None:
        del self._flights[key]
        if not result.cancelled():
            result.exception()  # seen, though its caller may be gone


def _flight_of(missing: KeyNotCached) -> Hashable | None:
    """Name what may be waited for together: a derivation only within a service, since each has its own turns."""
    if missing.key is None or not missing.derived:
        return missing.key
    return current_service.get(), missing.key


def _seal_both(seal: Callable[[str, TokenContext], Sealed], token_id: TokenId, secrets: Secrets) -> SealedSecrets:
    for _ in range(_ROUNDS):
        access = seal(secrets.access.get_secret_value(), _context(token_id, SecretField.ACCESS_TOKEN))
        if secrets.refresh is None:
            return SealedSecrets(access, None)
        refresh = seal(secrets.refresh.get_secret_value(), _context(token_id, SecretField.REFRESH_TOKEN))
        if refresh.scheme == access.scheme:  # the key or the strategy may have changed between the two
            return SealedSecrets(access, refresh)
    raise KeyUnavailable("the encryption key keeps changing; nothing was written")


def _context(token_id: TokenId, field: SecretField) -> TokenContext:
    return TokenContext(token_id.user_id, token_id.provider, token_id.service_type, field)
