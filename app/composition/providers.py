"""The OAuth providers, and what refreshes, exchanges and revokes tokens at them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.config.certificate_authorities import client_ssl_context
from app.config.settings import Settings, SettingsError
from app.refresh.revocation import TokenRevocation
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.models import Caller
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault

if TYPE_CHECKING:  # imports PyJWT and aiohttp, which take a while
    from app.refresh.background import BackgroundRefresh
    from app.refresh.exchange import CodeExchange
    from app.refresh.observer import RefreshObserver
    from app.refresh.provider_client import ProviderClient
    from app.refresh.refresher import TokenRefresher
    from app.refresh.registry import ProviderRegistry
    from app.refresh.rounds import RefreshRounds
    from app.refresh.spool import RefreshSpool
    from app.refresh.spool_recovery import SpoolRecovery


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

        return SpoolRecovery(
            spool=self.spool,
            tokens=tokens,
            cipher=cipher,
            events=events,
            providers=self.registry,
            observer=self.observer,
        )

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
