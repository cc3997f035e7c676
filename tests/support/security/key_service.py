"""A key service in memory, for tests that make thousands of KMS envelopes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from app.errors import IntegrityError
from app.security.kms.key_service import GeneratedDataKey

KEY_ARN = "arn:aws:kms:eu-central-1:123456789012:key/11111111-2222-4333-8444-555555555555"


class InMemoryKeyService:
    """`KeyService` that wraps data keys with AES-256-GCM; the encryption context is the AAD."""

    key_name = KEY_ARN

    def __init__(self) -> None:
        self._aead = AESGCM(os.urandom(32))

    def generate_data_key(self, encryption_context: Mapping[str, str]) -> GeneratedDataKey:
        plaintext, nonce = os.urandom(32), os.urandom(12)
        wrapped = nonce + self._aead.encrypt(nonce, plaintext, _aad(encryption_context))
        return GeneratedDataKey(plaintext, wrapped, KEY_ARN)

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str], *, key_name: str) -> bytes:  # noqa: ARG002  there is one key
        try:
            return self._aead.decrypt(wrapped[:12], wrapped[12:], _aad(encryption_context))
        except (InvalidTag, ValueError):
            raise IntegrityError("the wrapped data key does not authenticate") from None

    def close(self) -> None: ...


def _aad(encryption_context: Mapping[str, str]) -> bytes:
    return json.dumps(sorted(encryption_context.items())).encode()
