"""Resealing in the sweep's own process."""

from __future__ import annotations

from typing import Final

from app.errors import KeyDenied
from app.rewrap.resealer import PrimaryDeniedError
from app.tokens.cipher import Encrypted, SealedSecrets, TokenCipher

CONCURRENT_ROWS: Final = 32


class ResealerHere:
    """A `Resealer` around the cipher of this process."""

    concurrent_rows: Final = CONCURRENT_ROWS

    def __init__(self, *, cipher: TokenCipher) -> None:
        self._cipher = cipher

    @property
    def primary_scheme(self) -> str | None:
        return self._cipher.primary_scheme

    async def prove_primary(self) -> None:
        await self._cipher.prove_primary()

    async def reseal(self, row: Encrypted, *, open_only: bool = False) -> SealedSecrets | None:
        secrets = await self._cipher.open(row)
        if open_only:
            return None
        try:
            return await self._cipher.reseal(row.token_id, secrets)
        except KeyDenied as error:
            raise PrimaryDeniedError(error) from None
