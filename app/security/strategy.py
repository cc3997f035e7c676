"""What a way of encrypting has to offer."""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

from app.security.context import TokenContext
from app.security.formats import Family


class Sealed(NamedTuple):
    """A new ciphertext and how it was made.

    `scheme` goes to the column `encryption_scheme`, `method` and `key_id` to the row's metadata; `key_id` is the
    tracking id of a KMS data key and `None` for local encryption. `fallback` marks what was sealed locally only because
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


class EncryptionReader(Protocol):
    """Opens the ciphertexts of one family. Calls are synchronous and safe from several threads.

    With a key at hand a call takes microseconds. Without one it waits for a key service or a slow derivation, unless
    `wait` is false: then it raises `KeyNotCached` at once, and has done nothing.
    """

    @property
    def family(self) -> Family: ...

    def scheme_of(self, ciphertext: str) -> str:
        """Name how a ciphertext of this family was made, without opening it."""
        ...

    def open(self, ciphertext: str, context: TokenContext, *, wait: bool = True) -> str:
        """Return the plaintext, or raise an `EncryptionError`."""
        ...


class EncryptionStrategy(EncryptionReader, Protocol):
    """A reader that also writes."""

    @property
    def scheme(self) -> str | None:
        """The scheme of everything that `seal` makes now; `None` while KMS has not said which key it is."""
        ...

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        """Encrypt for exactly this context, or raise an `EncryptionError`."""
        ...
