"""TLS that ends in the vault itself, optionally with client certificates."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from uvicorn import Config

if TYPE_CHECKING:  # takes a while to import, and few vaults end TLS themselves
    from cryptography import x509

TLS_WARNING_DAYS: Final = 30


class TlsError(Exception):
    """One line that names the wrong file and the reason, never its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """PEM files: the certificate with its chain, its key without a password, and the CA of client certificates."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def check(self) -> datetime:
        """Return when the certificate expires, or raise `TlsError`."""
        certificates = _certificates(self.certificate, "TLS_CERT_FILE")
        _require_key(self.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ssl.SSLError):
            raise TlsError("TLS_KEY_FILE: does not belong to the certificate in TLS_CERT_FILE") from None
        if self.client_ca is not None:
            _certificates(self.client_ca, "TLS_CLIENT_CA_FILE")
        return certificates[0].not_valid_after_utc

    def uvicorn_options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "ssl_certfile": str(self.certificate),
            "ssl_keyfile": str(self.key),
            "ssl_context_factory": tls_1_2_context,
        }
        if self.client_ca is not None:
            options |= {"ssl_ca_certs": str(self.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return options


def tls_1_2_context(_config: Config, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return uvicorn's context with TLS 1.2 as its minimum (RFC 8996), even if OpenSSL's configuration allows less."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _certificates(path: Path, name: str) -> list[x509.Certificate]:
    from cryptography import x509  # noqa: PLC0415  see above

    try:
        return x509.load_pem_x509_certificates(_read(path, name))
    except ValueError:
        raise TlsError(f"{name}: contains no certificate in PEM format") from None


def _require_key(path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415  see above

    try:
        load_pem_private_key(_read(path, "TLS_KEY_FILE"), password=None)
    except TypeError:
        raise TlsError("TLS_KEY_FILE: the key has a password; the vault needs one without") from None
    except ValueError:
        raise TlsError("TLS_KEY_FILE: contains no private key in PEM format") from None


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        raise TlsError(f"{name}: cannot be read") from None
