"""Where the vault listens and whether with TLS, as types, and alone for who only asks whether it answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings

from app.config.source import FROM_ENVIRONMENT, loaded


class ListeningSettings(BaseSettings):
    """A part of the vault's settings that holds no secret, so that a probe need not take any."""

    model_config = FROM_ENVIRONMENT

    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080

    @field_validator("host")
    @classmethod
    def _can_be_looked_up(cls, value: str) -> str:
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
    """Whether this could be an address or a host's name: the look-up of others fails with errors of its own kind."""
    try:
        encoded = text.encode("idna")  # as Python does before it looks a name up
    except UnicodeError:
        return False
    return bool(encoded) and text.isprintable() and not any(map(str.isspace, text))


def load_listening_settings() -> ListeningSettings:
    """Read no more than where the vault listens, or raise `SettingsError`."""
    return loaded(ListeningSettings)
