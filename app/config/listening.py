"""Address, port and TLS files of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from app.config.source import FROM_ENVIRONMENT, loaded


class ListeningSettings(BaseSettings):
    """The settings that a health probe needs; none is secret."""

    model_config = FROM_ENVIRONMENT

    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080

    @field_validator("host")
    @classmethod
    def _can_be_resolved(cls, value: str) -> str:
        if not is_host(value):
            raise PydanticCustomError("host", "is neither an address nor a host name")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        kind = "inconsistent"
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            raise PydanticCustomError(kind, "TLS_CERT_FILE and TLS_KEY_FILE are needed together, or neither")
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            raise PydanticCustomError(kind, "TLS_CERT_FILE is needed because TLS_CLIENT_CA_FILE is set")
        return self


def is_host(text: str) -> bool:
    """Whether the resolver accepts this text; for other text it raises errors that are no `OSError`."""
    try:
        encoded = text.encode("idna")  # as Python does before it resolves a name
    except UnicodeError:
        return False
    return bool(encoded) and text.isprintable() and not any(map(str.isspace, text))


def load_listening_settings() -> ListeningSettings:
    """Read these settings alone, or raise `SettingsError`."""
    return loaded(ListeningSettings)
