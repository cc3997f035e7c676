"""Encryption services under three keys, and a planted bug: a context that lacks one member."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import TokenContext
from app.security.encryption_service import EncryptionService
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from app.security.legacy_formats import PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy
from app.security.strategy import EncryptionStrategy, Sealed, SealingKey
from tests.support.malicious_database.values import ALICE, BOB, old_ciphertext
from tests.support.security.key_service import InMemoryKeyService
from tests.support.security.keys import MASTER_KEY, OTHER_MASTER_KEY, keyring

_KEYS: Final = {1: MASTER_KEY, 2: OTHER_MASTER_KEY}


class ForgetfulStrategy:
    """A strategy with a planted bug: it does not bind one member of the context."""

    def __init__(self, strategy: EncryptionStrategy, member: str) -> None:
        self._strategy = strategy
        self._forgotten: dict[str, Any] = {member: None if member == "field" else ""}
        self.family = strategy.family

    @property
    def scheme(self) -> str | None:
        return self._strategy.scheme

    def open(self, ciphertext: str, context: TokenContext, *, claimed: str | None = None, wait: bool = True) -> str:
        return self._strategy.open(ciphertext, context._replace(**self._forgotten), claimed=claimed, wait=wait)

    def seal(self, plaintext: str, context: TokenContext, *, wait: bool = True) -> Sealed:
        return self._strategy.seal(plaintext, context._replace(**self._forgotten), wait=wait)

    def reserve(self, context: TokenContext, *, wait: bool = True) -> SealingKey:
        return self._strategy.reserve(context, wait=wait)


@cache
def encryption_services(*, legacy: bool, forgets: str | None = None) -> list[EncryptionService]:
    """Return services that read each other's ciphertexts; each has another primary: both master keys, and KMS."""
    counters = InMemoryCounters()
    data_keys = DataKeyCache(max_age_seconds=3600, max_messages=10**6, size=100, counters=counters)
    strategies: list[EncryptionStrategy] = [
        LocalStrategy(keyring=keyring(_KEYS, primary=1)),
        LocalStrategy(keyring=keyring(_KEYS, primary=2)),
        KmsEnvelopeStrategy(key_service=InMemoryKeyService(), data_keys=data_keys),
    ]
    if forgets is not None:
        strategies = [ForgetfulStrategy(strategy, forgets) for strategy in strategies]
    first, second, kms = strategies
    old = [PulsePlanLocalReader(keyring=keyring(_KEYS, primary=1))] if legacy else []
    services = [
        EncryptionService(primary=first, readers=[kms, *old], counters=counters),
        EncryptionService(primary=second, readers=[kms, *old], counters=counters),
        EncryptionService(primary=kms, readers=[first, *old], counters=counters),
    ]
    derived = [service.seal("x", TokenContext(ALICE)).ciphertext for service in services]
    for service in services:  # no call waits for a key
        for ciphertext in derived:
            service.open(ciphertext, TokenContext(ALICE))
        for user_id in (ALICE, BOB) if legacy else ():
            service.open(old_ciphertext("x", user_id), TokenContext(user_id))
    return services
