"""The committed KMS envelopes open, with the data key that KMS would have unwrapped."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from app.errors import IntegrityError
from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.key_service import GeneratedDataKey
from app.security.kms.strategy import KmsEnvelopeStrategy
from tests.support.vectors import KMS

_VECTORS = json.loads(KMS.read_text())


class _OneDataKey:
    """`KeyService` that unwraps the data key of one vector, in its encryption context alone."""

    def __init__(self, vector: Mapping[str, Any]) -> None:
        self._vector = vector

    @property
    def key_name(self) -> str:
        return str(self._vector["key_arn"])

    def generate_data_key(self, encryption_context: Mapping[str, str]) -> GeneratedDataKey:
        raise NotImplementedError

    def unwrap_data_key(self, wrapped: bytes, encryption_context: Mapping[str, str], *, key_name: str) -> bytes:
        context = {"user_id": self._vector["user_id"], "service": "pulseplan", "data_type": "auth_token"}
        if (wrapped.hex(), encryption_context, key_name) != (self._vector["wrapped"], context, self.key_name):
            raise IntegrityError("not the data key of this vector")
        return bytes.fromhex(self._vector["data_key"])

    def close(self) -> None: ...


@pytest.mark.parametrize("vector", _VECTORS, ids=lambda vector: str(vector["service_type"]))
def test_the_committed_envelopes_open(vector: dict[str, Any]) -> None:
    counters = InMemoryCounters()
    data_keys = DataKeyCache(max_age_seconds=300, max_messages=1000, size=10, counters=counters)
    strategy = KmsEnvelopeStrategy(key_service=_OneDataKey(vector), data_keys=data_keys)
    service = EncryptionService(primary=strategy, counters=counters)
    field = SecretField(vector["field"]) if vector["field"] else None
    context = TokenContext(
        vector["user_id"], vector["provider"], vector["service_type"], field, base_url=vector["base_url"]
    )
    assert service.open(vector["ciphertext"], context, claimed=f"kms:{vector['key_arn']}") == vector["plaintext"]
