"""Where implementations are chosen: settings in, collaborators out."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from app.callers.directory import ServiceKeyDirectory
from app.callers.key_list import KeyListError, parse_key_list
from app.config.settings import SettingsError
from app.observability.operations import OperationLog
from app.security.encryption import EncryptionService
from app.security.legacy import PulsePlanLocalReader
from app.security.local import LocalStrategy
from app.services.integrations.canvas_token_service import PROVIDER as CANVAS
from app.services.integrations.canvas_token_service import canvas_rule
from app.tokens.sqlite_repository import SqliteRepository
from app.tokens.token_cipher import TokenCipher
from app.tokens.vault import TokenVault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from app.config.settings import Settings
    from app.security.strategy import EncryptionReader
    from app.tokens.repository import TokenRepository


def build_encryption_service(settings: Settings) -> EncryptionService:
    """Build the primary strategy and every reader that the settings allow."""
    keyring = settings.keyring()
    if keyring is None:
        message = "TOKEN_ENCRYPTION_KEY is needed"
        raise SettingsError(message)
    readers: list[EncryptionReader] = []
    if settings.allow_legacy_formats:
        readers.append(PulsePlanLocalReader(keyring=keyring))
    return EncryptionService(primary=LocalStrategy(keyring=keyring), readers=readers)


async def open_repository(settings: Settings) -> TokenRepository:
    """Open the store that TOKEN_STORE names; raises a `StoreError` where that cannot work at all."""
    if settings.token_store == "sqlite":  # noqa: S105  a store's name
        return SqliteRepository(path=settings.sqlite_path)
    # importing supabase takes seconds, which the other store should not pay
    from app.tokens.supabase_repository import SupabaseRepository  # noqa: PLC0415

    if settings.supabase_url is None or settings.supabase_service_key is None:
        message = "SUPABASE_URL and SUPABASE_SERVICE_KEY are needed because TOKEN_STORE is supabase"
        raise SettingsError(message)
    return await SupabaseRepository.connect(url=settings.supabase_url, service_key=settings.supabase_service_key)


def build_vault(*, tokens: TokenRepository, encryption: EncryptionService) -> TokenVault:
    """Put the vault together."""
    return TokenVault(
        tokens=tokens,
        cipher=TokenCipher(encryption=encryption),
        events=OperationLog(),
        rules={CANVAS: canvas_rule},
    )


def build_service_key_directory(settings: Settings) -> ServiceKeyDirectory:
    """Build the directory of callers; raises `SettingsError` where SERVICE_KEYS is not a list of keys."""
    try:
        text = settings.service_keys.get_secret_value() if settings.service_keys else "[]"
        fixed = parse_key_list(text)
    except KeyListError as error:
        message = f"SERVICE_KEYS: {error}"
        raise SettingsError(message) from None
    return ServiceKeyDirectory(fixed=fixed, file=settings.service_keys_file)


@asynccontextmanager
async def open_vault(settings: Settings) -> AsyncIterator[TokenVault]:
    """Open a vault for a script, and close its store afterwards."""
    tokens = await open_repository(settings)
    try:
        yield build_vault(tokens=tokens, encryption=build_encryption_service(settings))
    finally:
        await tokens.close()
