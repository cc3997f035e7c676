"""Ciphertexts of PulsePlan's local format for any user."""

from __future__ import annotations

import hashlib
import secrets

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.security.keyring import decode_key_text
from app.security.legacy_formats import PBKDF2_ITERATIONS
from tests.support.security.keys import MASTER_KEY

_TAG_BYTES = 16


def legacy_ciphertext(plaintext: str, user_id: str, *, master_key: str = MASTER_KEY, version: int = 1) -> str:
    salt = f"pulseplan:user:{user_id}:v{version}".encode()
    key = hashlib.pbkdf2_hmac("sha256", decode_key_text(master_key), salt, PBKDF2_ITERATIONS, 32)
    iv = secrets.token_bytes(16)
    sealed = AESGCM(key).encrypt(iv, plaintext.encode(), None)
    body, tag = sealed[:-_TAG_BYTES], sealed[-_TAG_BYTES:]
    return f"v{version}:{iv.hex()}:{tag.hex()}:{body.hex()}"
