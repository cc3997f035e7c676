"""The store of the tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.config.settings import Settings, SettingsError
from app.stores.sqlite.repository import SqliteRepository
from app.tokens.repository import TokenRepository


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
