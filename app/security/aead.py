"""Authenticated encryption: AES-256-GCM with a commitment to the key.

AES-GCM does not commit to its key: a ciphertext can be made that opens under two keys. So HKDF-SHA256 (RFC 5869) turns
a 32-byte secret into the AES key and a commitment, stored beside the ciphertext and compared before decryption.
"""

from __future__ import annotations

import hmac
import os
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from app.errors import IntegrityError

KEY_BYTES = 32
COMMITMENT_BYTES = 32
NONCE_BYTES = 12
TAG_BYTES = 16


class Box(NamedTuple):
    """Commitment (32 bytes), nonce (12 bytes), and ciphertext with the 16-byte tag at its end."""

    commitment: bytes
    nonce: bytes
    ciphertext: bytes


class CommittingAead:
    """AES-256-GCM under a key that HKDF-SHA256 derives from `secret` and `info`.

    The first 32 bytes of HKDF's output are the key, the last 32 the commitment. Safe for concurrent use.
    """

    __slots__ = ("_aead", "_commitment")

    def __init__(self, secret: bytes, *, info: bytes) -> None:
        if len(secret) != KEY_BYTES:
            raise ValueError("the secret must be 32 bytes")
        derived = HKDF(hashes.SHA256(), KEY_BYTES + COMMITMENT_BYTES, salt=None, info=info).derive(secret)
        self._aead = AESGCM(derived[:KEY_BYTES])
        self._commitment = derived[KEY_BYTES:]

    @property
    def commitment(self) -> bytes:
        return self._commitment

    def seal(self, plaintext: bytes, aad: bytes) -> Box:
        """Encrypt under a fresh random nonce.

        NIST SP 800-38D allows 2**32 random nonces per key. A key serves one user (local) or one data key (KMS), which
        stay far below that.
        """
        nonce = os.urandom(NONCE_BYTES)
        return Box(self._commitment, nonce, self._aead.encrypt(nonce, plaintext, aad))

    def open(self, box: Box, aad: bytes) -> bytes:
        """Decrypt; raises `IntegrityError`. Compares the commitment in constant time before it decrypts."""
        if not hmac.compare_digest(box.commitment, self._commitment):
            raise IntegrityError("the ciphertext was not made with this key")
        return _decrypt(self._aead, box.nonce, box.ciphertext, aad)


def open_without_commitment(key: bytes, *, nonce: bytes, ciphertext: bytes) -> bytes:
    """Decrypt AES-256-GCM without AAD, as PulsePlan wrote it. Nothing is encrypted this way."""
    return _decrypt(AESGCM(key), nonce, ciphertext, None)


def _decrypt(aead: AESGCM, nonce: bytes, ciphertext: bytes, aad: bytes | None) -> bytes:
    try:
        return aead.decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        # `from None`: the library's traceback adds nothing, and its frames hold the key object
        raise IntegrityError("the ciphertext does not authenticate in this context") from None
