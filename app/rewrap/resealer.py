"""What a sweep spends its time on: opening a row and sealing its secrets under the primary."""

from __future__ import annotations

from typing import Protocol

from app.errors import KeyDenied
from app.tokens.cipher import Encrypted, SealedSecrets


class PrimaryDeniedError(Exception):
    """The key that seals is denied, as `error` says, so no other row would fare better."""

    def __init__(self, error: KeyDenied) -> None:
        super().__init__()
        self.error = error


class Resealer(Protocol):
    """Reseals rows, up to `concurrent_rows` of them at a time."""

    @property
    def primary_scheme(self) -> str | None:
        """The scheme of what is sealed now; `None` before `prove_primary`, where only KMS could tell it."""
        ...

    @property
    def concurrent_rows(self) -> int: ...

    async def prove_primary(self) -> None:
        """Prove that the primary seals and opens; afterwards its scheme is known. Raises an `EncryptionError`."""
        ...

    async def reseal(self, row: Encrypted, *, open_only: bool = False) -> SealedSecrets | None:
        """Return a row's secrets under the primary, proved to open again; of what is only opened, `None`.

        Raises an `EncryptionError` or `InvalidRequest` about this row, or `PrimaryDeniedError`.
        """
        ...
