"""The only place that chooses implementations: settings in, objects out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.audit.chained_lines import Chain
from app.audit.log_files import LogFiles
from app.audit.targets import STANDARD_OUTPUT, AuditTarget, FileTarget, StreamTarget, is_stream
from app.audit.trail import SignedAuditTrail
from app.audit.writer import AuditCounters
from app.callers.rate_limits import RequestLimits
from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_keys import KeyListError, parse_key_list
from app.config.audit import audit_key
from app.config.certificate_authorities import client_ssl_context
from app.config.service_keys import ServiceKeySettings
from app.config.settings import Settings, SettingsError
from app.errors import KeyDenied, KeyUnavailable, ProviderMisconfigured, ProviderUnavailable
from app.observability.in_memory_counters import InMemoryAuditCounters, InMemoryCounters, InMemoryUserJwtCounters
from app.observability.readiness import (
    TIMEOUT,
    Check,
    CheckState,
    Readiness,
    encryption_check,
    kms_check,
    service_keys_check,
)
from app.observability.request_log import OperationLog
from app.refresh.revocation import TokenRevocation
from app.security.counters import EncryptionCounters
from app.security.encryption_service import EncryptionService
from app.security.kms.circuit_breaker import CircuitBreaker, DenialBreaker
from app.security.kms.connection import ConnectionSettingsError
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.key_service import KeyService
from app.security.legacy_formats import PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy
from app.security.strategy import EncryptionReader, EncryptionStrategy
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.cipher import TokenCipher
from app.tokens.events import AuditTrail, NoAuditTrail, TokenEvents
from app.tokens.freshness import Refresher
from app.tokens.models import Caller, StoredToken
from app.tokens.provider_rules import PROVIDER_RULES
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault

if TYPE_CHECKING:  # OpenTelemetry is an extra; boto3, PyJWT and prometheus-client take a while to import
    from app.callers.jwks import JwksKeys
    from app.callers.user_jwt import UserJwtVerifier, VerificationKeys
    from app.callers.user_jwt_refusals import UserJwtCounters
    from app.observability.metrics.registry import VaultMetrics
    from app.observability.tracing import Tracing
    from app.refresh.background import BackgroundRefresh
    from app.refresh.exchange import CodeExchange
    from app.refresh.observer import RefreshObserver
    from app.refresh.provider_client import ProviderClient
    from app.refresh.refresher import TokenRefresher
    from app.refresh.registry import ProviderRegistry
    from app.refresh.rounds import RefreshRounds
    from app.refresh.spool import RefreshSpool
    from app.refresh.spool_recovery import SpoolRecovery
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


async def open_repository(settings: Settings) -> TokenRepository:
    """Open the store that TOKEN_STORE names; raises `StoreError` or `SettingsError` if it can never work."""
    if settings.token_store == "sqlite":  # noqa: S105  a store's name
        return SqliteRepository(path=settings.sqlite_path)
    if settings.token_store == "postgres":  # noqa: S105  a store's name
        from app.stores.postgres.repository import PostgresRepository  # noqa: PLC0415  imports asyncpg

        return await PostgresRepository.connect(url=settings.read_database_url, pool_size=settings.database_pool_size)
    # importing supabase takes seconds
    from app.stores.supabase.repository import SupabaseRepository  # noqa: PLC0415  see above

    if settings.supabase_url is None or settings.supabase_service_key is None:
        raise SettingsError("SUPABASE_URL and SUPABASE_SERVICE_KEY are needed because TOKEN_STORE is supabase")
    return await SupabaseRepository.connect(url=settings.supabase_url, service_key=settings.supabase_service_key)


@asynccontextmanager
async def opened_repository(settings: Settings) -> AsyncIterator[TokenRepository]:
    """Open the configured store and close it afterwards; raises as `open_repository` does."""
    tokens = await open_repository(settings)
    try:
        yield tokens
    finally:
        await tokens.close()


def load_tracing() -> Tracing:
    """Build the tracing; raises `SettingsError` if the extra `otel` is not installed."""
    require_tracing()
    from app.observability.tracing import Tracing  # noqa: PLC0415  an extra

    return Tracing()


def require_tracing() -> None:
    """Raise `SettingsError` if the extra `otel` is not installed."""
    try:
        import app.observability.tracing  # noqa: F401, PLC0415  only whether it can be imported
    except ImportError:
        raise SettingsError(
            "OTEL_TRACES is true, and that needs the extra `otel`: pip install 'pulseplan-token-vault[otel]'"
        ) from None


async def open_audit(
    settings: Settings | ServiceKeySettings,
    *,
    counters: AuditCounters | None = None,
    standard_stream: int = STANDARD_OUTPUT,
) -> SignedAuditTrail | NoAuditTrail:
    """Start this process's chain if AUDIT_LOG is set. A trail that cannot be written opens as unavailable.

    `standard_stream` is the descriptor that AUDIT_LOG=- stands for.
    """
    if settings.audit_log is None or settings.audit_key is None:
        return NoAuditTrail()
    chain = Chain(key=audit_key(settings.audit_key))
    audit = SignedAuditTrail(
        target=_audit_target(settings, settings.audit_log, chain, standard_stream),
        chain=chain,
        previous_keys=[audit_key(text) for text in settings.audit_previous_keys],
        sync=settings.audit_sync,
        counters=counters or InMemoryAuditCounters(),
    )
    await audit.open()
    return audit


def _audit_target(
    settings: Settings | ServiceKeySettings, audit_log: str, chain: Chain, standard_stream: int
) -> AuditTarget:
    if is_stream(audit_log):
        return StreamTarget(path=None if audit_log == "-" else Path(audit_log), standard=standard_stream)
    return FileTarget(
        log_files=LogFiles(Path(audit_log)),
        chain=chain.id,
        maximum_bytes=settings.audit_max_bytes,
        flushing=settings.audit_sync != "off",
    )


def build_events(audit: AuditTrail, metrics: VaultMetrics | None = None) -> TokenEvents:
    """Connect the audit trail, the log and the metrics to every operation on a token."""
    if metrics is None:
        return TokenEvents(audit=audit, observers=[OperationLog()])
    return TokenEvents(
        audit=audit,
        observers=[OperationLog(), metrics.operations, metrics.callers],
        on_refusal=metrics.callers.refused,
    )


def build_vault(
    *,
    tokens: TokenRepository,
    cipher: TokenCipher,
    events: TokenEvents,
    refresher: Refresher | None = None,
    on_reveal: Callable[[StoredToken], None] | None = None,
) -> TokenVault:
    return TokenVault(
        tokens=tokens, cipher=cipher, events=events, rules=PROVIDER_RULES, refresher=refresher, on_reveal=on_reveal
    )


def build_service_key_directory(settings: Settings) -> ServiceKeyDirectory:
    """Build the directory of service keys; raises `SettingsError` if SERVICE_KEYS is not a list of keys."""
    try:
        text = settings.service_keys.get_secret_value() if settings.service_keys else "[]"
        fixed = parse_key_list(text)
    except KeyListError as error:
        raise SettingsError(f"SERVICE_KEYS: {error}") from None
    return ServiceKeyDirectory(fixed=fixed, file=settings.service_keys_file)


@dataclass(frozen=True, slots=True)
class Providers:
    """The configured OAuth providers, the client that asks them, and the spool if REFRESH_SPOOL_DIR is set."""

    registry: ProviderRegistry
    client: ProviderClient
    spool: RefreshSpool | None
    observer: RefreshObserver | None = None

    def recovery(self, *, tokens: TokenRepository, cipher: TokenCipher, events: TokenEvents) -> SpoolRecovery | None:
        if self.spool is None:
            return None
        from app.refresh.spool_recovery import SpoolRecovery  # noqa: PLC0415  its spool is optional

        return SpoolRecovery(spool=self.spool, tokens=tokens, cipher=cipher, events=events, observer=self.observer)

    def refresher(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        recovery: SpoolRecovery | None,
    ) -> TokenRefresher:
        from app.refresh.refresher import TokenRefresher  # noqa: PLC0415  imports aiohttp

        return TokenRefresher(
            tokens=tokens,
            cipher=cipher,
            events=events,
            providers=self.registry,
            client=self.client,
            spool=recovery,
            observer=self.observer,
        )

    def rounds(self, *, tokens: TokenRepository, refresher: TokenRefresher, caller: Caller) -> RefreshRounds:
        from app.refresh.rounds import RefreshRounds  # noqa: PLC0415  imports aiohttp

        return RefreshRounds(
            tokens=tokens, refresher=refresher, providers=self.registry, caller=caller, observer=self.observer
        )

    def background(
        self, *, tokens: TokenRepository, refresher: TokenRefresher, settings: Settings
    ) -> BackgroundRefresh:
        from app.refresh.background import BACKGROUND_SERVICE, BackgroundRefresh  # noqa: PLC0415  imports aiohttp

        rounds = self.rounds(tokens=tokens, refresher=refresher, caller=Caller(BACKGROUND_SERVICE))
        return BackgroundRefresh(rounds=rounds, interval_seconds=settings.refresh_interval_seconds)

    def exchange(
        self, *, vault: TokenVault, tokens: TokenRepository, cipher: TokenCipher, events: TokenEvents
    ) -> CodeExchange:
        from app.refresh.exchange import CodeExchange  # noqa: PLC0415  imports aiohttp

        return CodeExchange(
            vault=vault,
            tokens=tokens,
            cipher=cipher,
            events=events,
            providers=self.registry,
            client=self.client,
            observer=self.observer,
        )


def build_revocation(
    providers: Providers | None, *, tokens: TokenRepository, cipher: TokenCipher, events: TokenEvents
) -> TokenRevocation:
    """Build what revokes tokens before it deletes them; without `providers` it only deletes."""
    if providers is None:
        return TokenRevocation(tokens=tokens, cipher=cipher, events=events)
    return TokenRevocation(
        tokens=tokens, cipher=cipher, events=events, providers=providers.registry, client=providers.client
    )


def build_provider_registry(settings: Settings) -> ProviderRegistry | None:
    """Load the OAuth providers, `None` if none are configured; raises `SettingsError` if an entry is wrong."""
    if settings.oauth_providers_file is None and settings.oauth_providers is None:
        return None
    from app.config.oauth_providers import load_provider_registry  # noqa: PLC0415  imports PyJWT

    return load_provider_registry(settings)


def build_refresh_spool(settings: Settings) -> RefreshSpool | None:
    """Open the spool, `None` without REFRESH_SPOOL_DIR; raises `SettingsError` if the directory cannot be used."""
    if settings.refresh_spool_dir is None:
        return None
    from app.refresh.spool import RefreshSpool, SpoolError  # noqa: PLC0415  optional

    spool = RefreshSpool(settings.refresh_spool_dir)
    try:
        spool.prepare()
    except SpoolError as error:
        raise SettingsError(f"REFRESH_SPOOL_DIR: {error}") from None
    except OSError as error:
        raise SettingsError(f"REFRESH_SPOOL_DIR: {error.strerror}") from None
    return spool


@asynccontextmanager
async def opened_providers(
    settings: Settings, *, observer: RefreshObserver | None = None
) -> AsyncIterator[Providers | None]:
    """Load the OAuth providers, `None` if none are configured, and open a client that asks them.

    Raises `SettingsError` if an entry or REFRESH_SPOOL_DIR is wrong.
    """
    registry = build_provider_registry(settings)
    if registry is None:
        yield None
        return
    providers = Providers(registry, build_provider_client(observer), build_refresh_spool(settings), observer)
    try:
        yield providers
    finally:
        await providers.client.close()


def build_provider_client(observer: RefreshObserver | None = None) -> ProviderClient:
    """Build the client that asks OAuth providers; raises `SettingsError` if SSL_CERT_FILE is wrong."""
    from app.refresh.provider_client import ProviderClient  # noqa: PLC0415  imports aiohttp

    return ProviderClient(tls=client_ssl_context(), observer=observer)


@dataclass(frozen=True, slots=True)
class UserJwts:
    """The verifier of users' JWTs, and its keys if they are downloaded."""

    verifier: UserJwtVerifier
    key_set: JwksKeys | None = None


def build_user_jwts(settings: Settings, *, counters: UserJwtCounters | None = None) -> UserJwts | None:
    """Build the verifier; `None` without USER_JWT_ISSUER. Downloads nothing yet. Raises `SettingsError`."""
    if settings.user_jwt_issuer is None:
        return None
    from app.callers.jwks import JwksKeys  # noqa: PLC0415  imports PyJWT
    from app.callers.user_jwt import SharedSecret, UserJwtVerifier  # noqa: PLC0415  imports PyJWT

    counters = counters or InMemoryUserJwtCounters()
    key_set = None
    keys: VerificationKeys
    if settings.user_jwt_secret is not None:
        keys = SharedSecret(settings.user_jwt_secret.get_secret_value().encode())
    elif settings.user_jwt_jwks_url is not None:
        keys = key_set = JwksKeys(download=_key_set_download(settings.user_jwt_jwks_url), counters=counters)
    else:
        raise SettingsError("USER_JWT_JWKS_URL or USER_JWT_SECRET is needed because USER_JWT_ISSUER is set")
    verifier = UserJwtVerifier(
        issuer=settings.user_jwt_issuer, audience=settings.user_jwt_audience, keys=keys, counters=counters
    )
    return UserJwts(verifier, key_set)


def _key_set_download(url: str) -> Callable[[], Awaitable[bytes]]:
    from app.callers.jwks_download import download_key_set  # noqa: PLC0415  imports httpx

    return partial(download_key_set, url, client_ssl_context())


def build_limits(settings: Settings) -> RequestLimits:
    """Build the limits on the callers of one process."""
    return RequestLimits(
        tokens_per_second=settings.rate_limit_per_second,
        concurrent_per_service=settings.maximum_concurrent_per_service,
        concurrent=settings.maximum_concurrent,
    )


def build_readiness(
    settings: Settings,
    encryption: Encryption,
    service_keys: ServiceKeyDirectory,
    repository: TokenRepository,
    audit: SignedAuditTrail | NoAuditTrail,
    *,
    user_jwts: UserJwts | None = None,
    providers: Providers | None = None,
    on_states: Callable[[Mapping[str, CheckState]], None] | None,
) -> Readiness:
    """Choose the checks of this configuration, and the failures that the replica tolerates."""
    checks: dict[str, Check] = {
        "store": repository.check,
        "encryption": encryption_check(encryption.service, keys_are_remote=settings.use_kms),
        "service_keys": service_keys_check(service_keys),
    }
    if isinstance(audit, SignedAuditTrail):
        checks["audit"] = audit.check
    tolerated: dict[str, frozenset[str]] = {}
    tolerated_later: dict[str, frozenset[str]] = {}
    if user_jwts is not None and user_jwts.key_set is not None:
        checks["user_jwt_keys"] = user_jwts.key_set.check
        tolerated["user_jwt_keys"] = frozenset({KeyUnavailable.code})  # other calls need no user's JWT
    if providers is not None:
        from app.refresh.provider_outages import providers_check  # noqa: PLC0415  imports PyJWT

        checks["providers"] = providers_check(providers.registry, providers.client.outages)
        # it concerns every replica, and each still answers the tokens that are valid
        tolerated["providers"] = frozenset({ProviderUnavailable.code, ProviderMisconfigured.code})
    if encryption.kms is not None:
        checks["kms"] = kms_check(encryption.kms)
        # an outage concerns every replica, and each serves the users whose data key it has; but a replica that never
        # reached KMS has none, and the fault may be its own, such as its network or its Region
        tolerated_later["kms"] = frozenset({KeyUnavailable.code, TIMEOUT})
        if not settings.use_kms:  # a denial may be this replica's own too, and only a KMS primary needs KMS to write
            tolerated["kms"] = frozenset({KeyDenied.code})
    return Readiness(checks=checks, tolerated=tolerated, tolerated_later=tolerated_later, on_states=on_states)


@asynccontextmanager
async def open_vault(settings: Settings) -> AsyncIterator[TokenVault]:
    """Open a vault for a script, and close it afterwards."""
    with closing(build_encryption(settings)) as encryption:
        async with opened_repository(settings) as tokens:
            audit = await open_audit(settings)
            try:
                cipher = TokenCipher(encryption=encryption.service)
                yield build_vault(tokens=tokens, cipher=cipher, events=build_events(audit))
            finally:
                await audit.close()
