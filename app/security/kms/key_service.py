"""Protocol of a key service: what envelope encryption needs of AWS KMS or another one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class GeneratedDataKey:
    """A fresh data key: 32 bytes, their wrapped form, and the name of the key that wrapped them (an ARN in AWS)."""

    plaintext: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_name: str


class KeyService(Protocol):
    """Generates data keys under one key, and unwraps those of that key and of the previous ones.

    Calls block, end within a deadline, and are safe from several threads. They raise `KeyUnavailable` if the same call
    may succeed later and `KeyDenied` if an operator has to act first. The service must authenticate the encryption
    context: a data key unwraps with exactly the pairs that it was generated with.
    """

    @property
    def key_name(self) -> str | None:
        """The full name of the key that generates now; `None` until the service has said what an alias stands for."""
        ...

    def generate_data_key(self, encryption_context: Mapping[str, str]) -> GeneratedDataKey: ...

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str], *, key_name: str) -> bytes:
        """Return the 32 bytes; raises `IntegrityError` if the wrapped key does not authenticate.

        `key_name` comes from the ciphertext: a hint about the configured key to try first, never trusted.
        """
        ...

    def close(self) -> None: ...
