"""Protocols of encryption strategies: readers decrypt one family, strategies also encrypt."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

from app.errors import IntegrityError
from app.security.context import TokenContext
from app.security.formats import Family


class Sealed(NamedTuple):
    """A new ciphertext and how it was made.

    `scheme` goes into the column `encryption_scheme`, `method` and `key_id` into the row's metadata. `key_id` is the
    tracking id of the data key, `None` for local encryption. `fallback` is true if it was encrypted locally because
    KMS was unavailable.
    """

    ciphertext: str
    scheme: str
    method: str
    key_id: str | None = None
    fallback: bool = False


class KeyNotCached(Exception):
    """`wait` was false, and a key has to be fetched or derived first. Says nothing about the ciphertext.

    `key` names the key: calls that lack the same key have equal names, and one of them can fetch it for all. `derived`
    is true for a slow derivation, which takes a processor, and false for a key service, which takes only time.
    """

    def __init__(self, key: Hashable, *, derived: bool = False) -> None:
        super().__init__()
        self.key = key
        self.derived = derived


def require_claim(claimed: str | None, scheme: str | None) -> None:
    """Raise `IntegrityError` if a row names another scheme than that of its ciphertext.

    `scheme` is `None` for the formats that the vault never writes: a row names none beside them.
    """
    if claimed is not None and claimed != scheme:
        raise IntegrityError("the row's encryption_scheme is not the scheme of its ciphertext")


class EncryptionReader(Protocol):
    """Decrypts the ciphertexts of one family. Calls are synchronous and safe from several threads.

    With its key in memory a call takes microseconds. Without it the call waits for a key service or a derivation, or
    raises `KeyNotCached` at once if `wait` is false.
    """

    @property
    def family(self) -> Family: ...

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        """Return the plaintext; raises an `EncryptionError`.

        `claimed` is the scheme that the row names, `None` if it names none. A ciphertext of another scheme is an
        `IntegrityError`, before any key is used.
        """
        ...


class SealingKey(Protocol):
    """A key that is in memory, with which one user's tokens of one provider can be encrypted without waiting."""

    def seal(self, plaintext: str, context: TokenContext) -> Sealed:
        """Encrypt for exactly this context, for the user and provider of the key."""
        ...


class EncryptionStrategy(EncryptionReader, Protocol):
    """A reader that also encrypts."""

    @property
    def scheme(self) -> str | None:
        """The scheme of new ciphertexts; `None` until KMS has answered with the ARN of its key."""
        ...

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        """Encrypt for exactly this context; raises an `EncryptionError`."""
        ...

    def reserve(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        """Return the key for this user and provider, for the secrets of one token that are not known yet.

        It works even if the key service is down by then. Raises an `EncryptionError`.
        """
        ...
