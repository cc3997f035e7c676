"""Settings of `token-vault migrate`, which needs no key of the vault."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr

from app.config.database_url import DatabaseUrl, DatabaseUrlError, database_url_source
from app.config.settings import Settings
from app.config.source import EnvironmentSettings, SettingsError, loaded


class _MigrationSettings(EnvironmentSettings):
    database_url: SecretStr | None = None
    database_url_file: Path | None = None


def load_migration_url() -> DatabaseUrl:
    """Return the address of the database that is migrated; raises `SettingsError`."""
    settings = loaded(_MigrationSettings, names_of=Settings)
    if settings.database_url is not None and settings.database_url_file is not None:
        raise SettingsError("DATABASE_URL and DATABASE_URL_FILE are both set; set one of them")
    if settings.database_url is None and settings.database_url_file is None:
        raise SettingsError("DATABASE_URL is needed: the address of the database, with the owner of oauth_tokens")
    try:
        return database_url_source(settings.database_url, settings.database_url_file)()
    except DatabaseUrlError as error:
        name = "DATABASE_URL" if settings.database_url_file is None else "DATABASE_URL_FILE"
        raise SettingsError(f"{name}: {error}") from None
