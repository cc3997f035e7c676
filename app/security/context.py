"""The context that a ciphertext is bound to."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

LABEL = b"pulseplan-token-vault"
_SAME_FOR_ALL: Final = {"data_type": "auth_token", "service": "pulseplan"}


class SecretField(StrEnum):
    """The two secret columns of a token."""

    __hash__ = str.__hash__  # Enum's is a function in Python

    ACCESS_TOKEN = "access_token"  # noqa: S105  a column's name
    REFRESH_TOKEN = "refresh_token"  # noqa: S105  a column's name


class TokenContext(NamedTuple):
    """User, provider, service type, column and base URL of one secret.

    A part that is not given is empty, and has to be empty for decryption too. The base URL is text of any kind, because
    a row of PulsePlan's may hold any.
    """

    user_id: str
    provider: str = ""
    service_type: str = ""
    field: SecretField | None = None
    base_url: str = ""

    def aad(self, family: bytes, *key_name: bytes) -> bytes:
        """Return the additional authenticated data (RFC 5116).

        The parts, each after its 4-byte big-endian length: `pulseplan-token-vault`, `family` (family and format
        number), the parts of `key_name`, user id, provider, service type, field, base URL. Text is UTF-8; a lone
        surrogate in the base URL, which SQLite can hold, is encoded as UTF-8 would encode its code point.
        """
        return _same_for_each_token(family, *key_name) + length_prefixed(
            self.user_id.encode(),
            self.provider.encode(),
            self.service_type.encode(),
            (self.field or "").encode(),
            self.base_url.encode(errors="surrogatepass"),
        )

    def encryption_context(self) -> dict[str, str]:
        """Return the three pairs that AWS KMS authenticates, logs and matches in IAM conditions."""
        return {"user_id": self.user_id, **_SAME_FOR_ALL}

    def encryption_context_bytes(self) -> bytes:
        """Return `encryption_context` as bytes that are equal for equal pairs only."""
        return _BYTES_FOR_ALL + length_prefixed(b"user_id", self.user_id.encode())


def length_prefixed(*parts: bytes) -> bytes:
    """Join parts; no two different lists of parts give the same bytes."""
    return b"".join([len(part).to_bytes(4, "big") + part for part in parts])


@lru_cache(maxsize=64)
def _same_for_each_token(family: bytes, *key_name: bytes) -> bytes:
    return length_prefixed(LABEL, family, *key_name)


_BYTES_FOR_ALL: Final = length_prefixed(*(part.encode() for pair in sorted(_SAME_FOR_ALL.items()) for part in pair))
