"""What a sweep and its processes say to each other: one JSON array a line, and no plaintext in any of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final, NamedTuple

from app import errors
from app.rewrap.resealer import PrimaryDeniedError
from app.security.strategy import Sealed
from app.tokens.cipher import Encrypted, SealedSecrets
from app.tokens.models import TokenId

MAXIMUM_LINE_BYTES: Final = 4 * 1024 * 1024  # two of the longest ciphertexts, with each character escaped
READY: Final = b"ready\n"  # the first line of a process, before any answer


def _with_subclasses(error: type[errors.VaultError]) -> Iterator[type[errors.VaultError]]:
    yield error
    for subclass in error.__subclasses__():
        yield from _with_subclasses(subclass)


# what a `Resealer` raises; of each its detail goes along, and nothing else that it may have
_ERRORS: Final = {
    error.__name__: error
    for error in (*_with_subclasses(errors.EncryptionError), errors.InvalidRequest, errors.InternalError)
}


class Ciphertexts(NamedTuple):
    """The part of a row that is opened."""

    token_id: TokenId
    access_ciphertext: str
    refresh_ciphertext: str | None


class Question(NamedTuple):
    """One row to reseal. `number` comes back with the answer, for answers come in any order."""

    number: int
    open_only: bool
    ciphertexts: Ciphertexts

    @classmethod
    def about(cls, number: int, row: Encrypted, *, open_only: bool) -> Question:
        return cls(number, open_only, Ciphertexts(row.token_id, row.access_ciphertext, row.refresh_ciphertext))

    def line(self) -> bytes:
        token_id, access, refresh = self.ciphertexts
        names = (token_id.user_id, token_id.provider, token_id.service_type)
        return _line([self.number, self.open_only, names, access, refresh])

    @classmethod
    def parse(cls, line: bytes) -> Question:
        number, open_only, names, access, refresh = json.loads(line)
        return cls(number, open_only, Ciphertexts(TokenId(*names), access, refresh))


class Answer(NamedTuple):
    """What became of one row: `sealed`, or an error, or neither where it was only opened."""

    number: int
    sealed: SealedSecrets | None = None
    error: errors.VaultError | PrimaryDeniedError | None = None

    def line(self) -> bytes:
        sealed = None if self.sealed is None else [self.sealed.access, self.sealed.refresh]
        return _line([self.number, sealed, _words_of(self.error)])

    @classmethod
    def parse(cls, line: bytes) -> Answer:
        number, sealed, words = json.loads(line)
        if words is not None:
            return cls(number, error=_error_of(*words))
        if sealed is None:
            return cls(number)
        access, refresh = sealed
        return cls(number, SealedSecrets(Sealed(*access), None if refresh is None else Sealed(*refresh)))


def _words_of(error: errors.VaultError | PrimaryDeniedError | None) -> list[object] | None:
    """Return an error's class, its detail, and whether it is about the primary rather than the row."""
    if error is None:
        return None
    is_of_primary = isinstance(error, PrimaryDeniedError)
    told = error.error if isinstance(error, PrimaryDeniedError) else error
    return [type(told).__name__, told.detail, is_of_primary]


def _error_of(name: str, detail: str, is_of_primary: bool) -> errors.VaultError | PrimaryDeniedError:  # noqa: FBT001  as the line has it
    error: errors.VaultError = _ERRORS[name](detail)
    return PrimaryDeniedError(error) if is_of_primary and isinstance(error, errors.KeyDenied) else error


def _line(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
