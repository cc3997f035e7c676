"""Where the vault listens and whether with TLS, as types, and alone for who only asks whether it answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

if TYPE_CHECKING:
    from collections.abc import Iterator


class ListeningSettings(BaseSettings):
    """A part of the vault's settings that holds no secret, so that a probe need not read any."""

    model_config = SettingsConfigDict(
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    tls_cert_file: Path | None = None
    tls_key_file: Path | None = None
    tls_client_ca_file: Path | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080

    def _wrong_tls(self) -> Iterator[str]:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            yield "TLS_CERT_FILE and TLS_KEY_FILE are needed together, or neither"
        if self.tls_client_ca_file is not None and self.tls_cert_file is None:
            yield "TLS_CERT_FILE is needed because TLS_CLIENT_CA_FILE is set"
