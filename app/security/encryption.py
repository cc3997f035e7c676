"""`get_encryption_service()`, for scripts. Inside the application the service is injected."""

from __future__ import annotations

from functools import cache

from app.security.encryption_service import EncryptionService


@cache
def get_encryption_service() -> EncryptionService:
    """Build the service from the settings on the first call; raises `SettingsError`."""
    from app.composition.encryption import build_encryption  # noqa: PLC0415  importing this module does nothing
    from app.config.settings import load_settings  # noqa: PLC0415  importing this module does nothing

    return build_encryption(load_settings()).service
