"""Settings of the `token-vault service-key` commands, which need no key of the vault."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, model_validator
from pydantic_core import PydanticCustomError

from app.config.audit import AuditReaderSettings
from app.config.source import EnvironmentSettings


class ServiceKeyListSettings(EnvironmentSettings):
    """Where service keys are kept."""

    service_keys_file: Path | None = None
    service_keys: SecretStr | None = None


class ServiceKeySettings(ServiceKeyListSettings, AuditReaderSettings):
    """Where service keys are kept, and where changes of them are recorded."""

    audit_sync: Literal["always", "interval", "off"] = "interval"
    audit_max_bytes: Annotated[int, Field(ge=4096, le=2**40)] = 64 * 1024 * 1024

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.audit_log is not None and self.audit_key is None:
            raise PydanticCustomError(
                "inconsistent", "AUDIT_KEY is needed because AUDIT_LOG is set: 32 random bytes in base64"
            )
        return self
