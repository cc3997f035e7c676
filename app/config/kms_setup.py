"""Settings of `token-vault kms setup`, which runs before the others are complete."""

from __future__ import annotations

from pydantic_settings import BaseSettings

from app.config.source import FROM_ENVIRONMENT, loaded
from app.security.kms.connection import KmsConnection


class _KmsLocation(BaseSettings):
    model_config = FROM_ENVIRONMENT

    aws_region: str | None = None
    aws_endpoint_url_kms: str | None = None


def load_admin_connection(*, region: str | None) -> KmsConnection:
    """Return the KMS that the service will use, without credentials; raises `SettingsError`."""
    location = loaded(_KmsLocation)
    return KmsConnection(region=region or location.aws_region, endpoint_url=location.aws_endpoint_url_kms)
