"""Address, port and TLS files of the server."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from app.config.source import EnvironmentSettings, loaded


class ListeningSettings(EnvironmentSettings):
    """The settings that a health probe needs; none is secret."""

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


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; a name other than `localhost` may be any address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def unencrypted_listener(host: str, *, tls: bool) -> str | None:
    """Return a warning if other machines reach this host and the vault does not speak TLS on it."""
    if tls or is_loopback(host):
        return None
    return (
        f"the vault listens on {host} without TLS: tokens and service keys cross the network unencrypted unless only a "
        "proxy that speaks TLS reaches the port; set TLS_CERT_FILE, or listen on the loopback address"
    )


def load_listening_settings() -> ListeningSettings:
    """Read these settings alone, or raise `SettingsError`."""
    return loaded(ListeningSettings)
