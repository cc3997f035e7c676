"""The token store as commands open it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from app.cli.errors import UsageError
from app.composition.stores import opened_repository
from app.config.settings import Settings
from app.config.source import SettingsError
from app.errors import StoreError
from app.tokens.repository import TokenRepository


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[TokenRepository]:
    """Open the existing store and close it afterwards; a store error inside the block ends the command.

    Unlike the service, a command does not create a missing SQLite file: in the wrong directory it would find no rows
    under an old key, and report that the key can be removed.
    """
    if settings.token_store == "sqlite" and not settings.sqlite_path.exists():  # noqa: S105  a store's name
        raise UsageError(f"SQLITE_PATH: {settings.sqlite_path} does not exist")
    try:
        async with opened_repository(settings) as tokens:
            yield tokens
    except StoreError as error:
        raise UsageError(f"{error.code}: {error.detail}; run `token-vault doctor`") from None
    except SettingsError as error:
        raise UsageError(str(error)) from None
