"""What a sweep and its processes say to each other: one JSON array a line, and no plaintext in any of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final, NamedTuple

from app import errors
from app.security.strategy import Sealed
from app.tokens.models import TokenId
from app.tokens.resealer import PrimaryDeniedError
from app.tokens.token_cipher import SealedSecrets

if TYPE_CHECKING:
    from app.tokens.token_cipher import Encrypted

MAXIMUM_LINE_BYTES: Final = 4 * 1024 * 1024  # two of the longest ciphertexts, with each character escaped
_PRIMARY_DENIED: Final = "PrimaryDenied"
_ERRORS: Final = {
    error.__name__: error
    for error in (
        errors.KeyUnavailable,
        errors.KeyDenied,
        errors.IntegrityError,
        errors.MalformedCiphertext,
        errors.ContextMismatch,
        errors.InvalidRequest,
        errors.InternalError,
    )
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


def _words_of(error: errors.VaultError | PrimaryDeniedError | None) -> list[str] | None:
    if error is None:
        return None
    if isinstance(error, PrimaryDeniedError):
        return [_PRIMARY_DENIED, error.error.detail]
    return [type(error).__name__, error.detail]


def _error_of(name: str, detail: str) -> errors.VaultError | PrimaryDeniedError:
    if name == _PRIMARY_DENIED:
        return PrimaryDeniedError(errors.KeyDenied(detail))
    return _ERRORS[name](detail)


def _line(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"
