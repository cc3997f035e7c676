"""Master keys by version."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from app.errors import KeyDenied

MINIMUM_KEY_BYTES = 16
RECOMMENDED_KEY_BYTES = 32


def new_key_text() -> str:
    """Return a fresh master key of the recommended size in base64."""
    return base64.b64encode(secrets.token_bytes(RECOMMENDED_KEY_BYTES)).decode()


def decode_key_text(text: str) -> bytes:
    """Decode a master key exactly as PulsePlan does, because its ciphertexts must stay readable.

    That is CPython's non-validating `base64.b64decode`, which drops characters outside the alphabet, or the raw UTF-8
    of the text if that raises.
    """
    try:
        return base64.b64decode(text)
    except (binascii.Error, ValueError):
        return text.encode()


@dataclass(frozen=True, slots=True)
class Keyring:
    """Decoded master keys by version, the version that encrypts, and the lowest version that still decrypts."""

    primary_version: int
    keys: Mapping[int, bytes] = field(repr=False)
    minimum_version: int = 1

    def __post_init__(self) -> None:
        if self.primary_version not in self.keys:
            raise ValueError(f"no master key of version {self.primary_version}")

    def key(self, version: int) -> bytes:
        """Return the master key of `version`; raises `KeyDenied` if it is too old or not configured."""
        if version < self.minimum_version:
            raise KeyDenied(f"key version {version} is below MIN_KEY_VERSION")
        try:
            return self.keys[version]
        except KeyError:
            raise KeyDenied(f"no master key of version {version} is configured") from None
