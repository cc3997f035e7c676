"""The encryption service: the primary strategy and its readers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.config.settings import Settings, SettingsError
from app.errors import KeyDenied
from app.observability.in_memory_counters import InMemoryCounters
from app.security.counters import EncryptionCounters
from app.security.encryption_service import EncryptionService
from app.security.kms.circuit_breaker import CircuitBreaker, DenialBreaker
from app.security.kms.connection import ConnectionSettingsError
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.key_service import KeyService
from app.security.legacy_formats import PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy
from app.security.strategy import EncryptionReader, EncryptionStrategy

if TYPE_CHECKING:  # imports boto3, which takes a while
    from app.security.kms.client import KmsObserver


@dataclass(frozen=True, slots=True)
class Encryption:
    """The encryption service, with the parts that are observed and closed; `kms` is `None` if none is configured."""

    service: EncryptionService
    kms: KeyService | None = None
    data_keys: DataKeyCache | None = None

    def close(self) -> None:
        if self.kms is not None:
            self.kms.close()


def build_local_strategy(settings: Settings) -> LocalStrategy | None:
    keyring = settings.keyring()
    return None if keyring is None else LocalStrategy(keyring=keyring)


def build_encryption(
    settings: Settings,
    *,
    local: LocalStrategy | None = None,
    counters: EncryptionCounters | None = None,
    observe_kms: KmsObserver = nullcontext,
) -> Encryption:
    """Build the primary strategy and every reader that the settings allow; raises `SettingsError`.

    `local` is the local strategy of these settings if it was built before. Each request to KMS runs inside the context
    that `observe_kms` returns.
    """
    counters = counters or InMemoryCounters()
    strategies: list[EncryptionStrategy] = []
    readers: list[EncryptionReader] = []
    keyring = settings.keyring()
    local = local or build_local_strategy(settings)
    if local is not None:
        strategies.append(local)
    if keyring is not None and settings.allow_legacy_formats:
        readers.append(PulsePlanLocalReader(keyring=keyring))
    kms = data_keys = None
    if settings.kms_key_id is not None:
        from app.security.kms.strategy import KmsEnvelopeStrategy  # noqa: PLC0415  boto3 takes long to import

        kms = _build_kms_client(settings, settings.kms_key_id, counters, observe_kms)
        data_keys = DataKeyCache(
            max_age_seconds=settings.data_key_max_age_seconds,
            max_messages=settings.data_key_max_messages,
            size=settings.data_key_cache_size,
            counters=counters,
        )
        # the primary comes first
        strategies.insert(0 if settings.use_kms else 1, KmsEnvelopeStrategy(key_service=kms, data_keys=data_keys))
    service = EncryptionService(
        primary=strategies[0],
        readers=[*strategies[1:], *readers],
        fallback=local if settings.use_kms and settings.kms_fallback_to_local else None,
        counters=counters,
    )
    return Encryption(service, kms, data_keys)


def _build_kms_client(
    settings: Settings, key_id: str, counters: EncryptionCounters, observe_kms: KmsObserver
) -> KeyService:
    from app.security.kms.boto_clients import open_kms_client  # noqa: PLC0415  boto3 takes long to import
    from app.security.kms.client import KmsClient  # noqa: PLC0415  boto3 takes long to import

    connection = settings.kms_connection()
    try:
        client = open_kms_client(connection)
    except ConnectionSettingsError as error:
        raise SettingsError(str(error)) from None
    except KeyDenied:  # credentials may come later, and the other parts need not wait for them
        client = None
    return KmsClient(
        client=client,
        reconnect=lambda: open_kms_client(connection),
        key_id=key_id,
        previous_key_ids=settings.kms_previous_key_ids,
        breaker=CircuitBreaker(counters=counters),
        denials=DenialBreaker(),
        counters=counters,
        observe=observe_kms,
    )
