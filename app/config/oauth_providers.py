"""The OAuth providers of the settings, and the variables that their entries name."""

from __future__ import annotations

import os

from app.config.settings import Settings
from app.config.source import SettingsError
from app.refresh.provider_list import ProviderListError, ProviderSource
from app.refresh.registry import ProviderRegistry


def load_provider_registry(settings: Settings) -> ProviderRegistry:
    """Return the registry of OAUTH_PROVIDERS_FILE or OAUTH_PROVIDERS; raises `SettingsError` if an entry is wrong.

    Variables that entries name with `client_secret_env` are read from the environment alone, not from `.env`.
    """
    if settings.oauth_providers_file is None and settings.oauth_providers is None:
        return ProviderRegistry()
    name = "OAUTH_PROVIDERS" if settings.oauth_providers_file is None else "OAUTH_PROVIDERS_FILE"
    source = ProviderSource(
        file=settings.oauth_providers_file, text=settings.oauth_providers, read_variable=os.environ.get
    )
    try:
        return ProviderRegistry(source=source)
    except ProviderListError as error:
        raise SettingsError(f"{name}: {error}") from None
