"""A token's two secrets, sealed and opened together, without ever blocking the event loop."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from pydantic import SecretStr

from app.errors import KeyUnavailable
from app.security.context import SecretField, TokenContext
from app.security.strategy import KeyNotAtHand

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.security.encryption import EncryptionService
    from app.security.strategy import Sealed
    from app.tokens.models import StoredToken, TokenId


T = TypeVar("T")
_ROUNDS = 3
WAITING_CALLS = 64


@dataclass(frozen=True, slots=True)
class SealedSecrets:
    """`access` also tells how both were made: one row has one scheme."""

    access: Sealed
    refresh: Sealed | None


class TokenCipher:
    """Binds each secret to its token id and column.

    Encryption takes microseconds and runs right here. Only where a key must first be fetched or derived is the call
    made again in a thread, and this module is where that is decided.
    """

    def __init__(self, *, encryption: EncryptionService) -> None:
        self._encryption = encryption
        # a pool of its own: while KMS hangs, its waiters must not take the threads of everything else
        self._threads = ThreadPoolExecutor(WAITING_CALLS, thread_name_prefix="cipher")

    async def seal(self, token_id: TokenId, access: SecretStr, refresh: SecretStr | None) -> SealedSecrets:
        """Encrypt both under the primary; raises an `EncryptionError`."""
        access_context = _context(token_id, SecretField.ACCESS_TOKEN)
        refresh_context = _context(token_id, SecretField.REFRESH_TOKEN)

        def seal(*, wait: bool) -> SealedSecrets:
            for _ in range(_ROUNDS):
                sealed = self._encryption.seal(access.get_secret_value(), access_context, wait=wait)
                if refresh is None:
                    return SealedSecrets(sealed, None)
                other = self._encryption.seal(refresh.get_secret_value(), refresh_context, wait=wait)
                if other.scheme == sealed.scheme:  # the key or the strategy may have changed between the two
                    return SealedSecrets(sealed, other)
            message = "the encryption key keeps changing; nothing was written"
            raise KeyUnavailable(message)

        return await self._off_the_loop_if_needed(seal)

    async def open_access(self, token: StoredToken) -> SecretStr:
        """Decrypt the access token; raises an `EncryptionError`."""
        return await self._open(token.access_ciphertext, token.token_id, SecretField.ACCESS_TOKEN)

    async def open_refresh(self, token: StoredToken) -> SecretStr | None:
        """Decrypt the refresh token, `None` where there is none; raises an `EncryptionError`."""
        if token.refresh_ciphertext is None:
            return None
        return await self._open(token.refresh_ciphertext, token.token_id, SecretField.REFRESH_TOKEN)

    def is_current(self, ciphertext: str) -> bool:
        """Whether the primary would seal it the same way today."""
        return self._encryption.is_current(ciphertext)

    async def _open(self, ciphertext: str, token_id: TokenId, field: SecretField) -> SecretStr:
        context = _context(token_id, field)

        def open_it(*, wait: bool) -> SecretStr:
            return SecretStr(self._encryption.open(ciphertext, context, wait=wait))

        return await self._off_the_loop_if_needed(open_it)

    async def _off_the_loop_if_needed(self, call: Callable[..., T]) -> T:
        try:
            return call(wait=False)
        except KeyNotAtHand:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(call, wait=True))


def _context(token_id: TokenId, field: SecretField) -> TokenContext:
    return TokenContext(token_id.user_id, token_id.provider, token_id.service_type, field)
