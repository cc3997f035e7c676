"""KMS strategies over the stand-in KMS with an injected clock, and the members of their packages."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
from app.security.kms.circuit_breaker import CircuitBreaker, DenialBreaker
from app.security.kms.client import DEADLINE_SECONDS, KmsClient
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from app.security.local_strategy import LocalStrategy
from tests.support.security.clock import Clock
from tests.support.security.keys import keyring
from tests.support.stack.kms import Kms

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
OTHER_USER = "1e2feb89-414c-443c-9027-c4d1c386bbc4"
HERE = TokenContext(USER, "canvas", "default", SecretField.ACCESS_TOKEN)
TOKEN = "1234~a-canvas-token"
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=50),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=5,
)
MEMBERS = ("fmt", "kid", "id", "dk", "cm", "n", "ct")


@dataclass(frozen=True, slots=True)
class Envelope:
    """One process's worth of KMS encryption; `service` is KMS first, and local can be read."""

    strategy: KmsEnvelopeStrategy
    service: EncryptionService
    client: KmsClient
    data_keys: DataKeyCache
    counters: InMemoryCounters
    clock: Clock

    def seal(self, context: TokenContext = HERE, plaintext: str = TOKEN) -> str:
        return self.service.seal(plaintext, context).ciphertext

    def open(self, ciphertext: str, context: TokenContext = HERE) -> str:
        return self.service.open(ciphertext, context)


def envelope(
    kms: Kms,
    *,
    key_id: str | None = None,
    previous_key_ids: Sequence[str] = (),
    max_age_seconds: float = 300,
    max_messages: int = 1000,
    size: int = 10_000,
    deadline_seconds: float = DEADLINE_SECONDS,
    counters: InMemoryCounters | None = None,
    boto_client: Any = None,
    reconnect: Callable[[], Any] | None = None,
) -> Envelope:
    """Return a new process: nothing cached, the breakers closed."""
    clock, counters = Clock(), counters or InMemoryCounters()
    client = KmsClient(
        client=boto_client or kms.client(),
        key_id=key_id or kms.key_arn,
        previous_key_ids=previous_key_ids,
        breaker=CircuitBreaker(counters=counters, monotonic=clock),
        denials=DenialBreaker(monotonic=clock),
        counters=counters,
        deadline_seconds=deadline_seconds,
        reconnect=reconnect,
    )
    data_keys = DataKeyCache(
        max_age_seconds=max_age_seconds,
        max_messages=max_messages,
        size=size,
        counters=counters,
        monotonic=clock,
    )
    strategy = KmsEnvelopeStrategy(key_service=client, data_keys=data_keys, monotonic=clock)
    service = EncryptionService(
        primary=strategy,
        readers=[LocalStrategy(keyring=keyring())],
        counters=counters,
    )
    return Envelope(strategy, service, client, data_keys, counters, clock)


def members_of(ciphertext: str) -> dict[str, Any]:
    """Return the members of a package."""
    return dict(json.loads(ciphertext.removeprefix("kms:")))


def package(members: dict[str, Any]) -> str:
    """Return the package with these members, in their order."""
    return "kms:" + json.dumps(members, separators=(",", ":"))


def changed(ciphertext: str, **members: Any) -> str:
    """Return the package with other values for these members."""
    return package(members_of(ciphertext) | members)


def encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
