"""The key that signs the audit trail."""

from __future__ import annotations

import base64
import binascii
import hmac
from dataclasses import dataclass, field
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

MINIMUM_KEY_BYTES: Final = 32
_MAC: Final = b"pulseplan-token-vault/audit/v1/mac"
_NAME: Final = b"pulseplan-token-vault/audit/v1/key-name"


@dataclass(frozen=True, slots=True)
class AuditKey:
    """A MAC key and its public name, both derived from AUDIT_KEY with HKDF-SHA256 (RFC 5869)."""

    name: str
    keyed: hmac.HMAC = field(repr=False, compare=False)

    @classmethod
    def derive(cls, secret: bytes) -> AuditKey:
        return cls(_hkdf(secret, _NAME, 8).hex(), hmac.new(_hkdf(secret, _MAC, 32), digestmod="sha256"))

    def mac(self, signed: bytes) -> bytes:
        """Return HMAC-SHA256 in lower-case hex."""
        # hmac.digest() releases the GIL for each line, and a busy event loop is slow to give it back
        mac = self.keyed.copy()
        mac.update(signed)
        return mac.hexdigest().encode()


def decode_audit_key(text: str) -> bytes:
    """Decode strict base64 of at least 32 bytes, or raise `ValueError`."""
    try:
        secret = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64") from None
    if len(secret) < MINIMUM_KEY_BYTES:
        raise ValueError(f"has less than {MINIMUM_KEY_BYTES} bytes after decoding")
    return secret


def _hkdf(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(hashes.SHA256(), length, salt=None, info=info).derive(secret)
