"""Certificate authorities that the vault's HTTP clients trust."""

from __future__ import annotations

import os
import ssl
from typing import Final

from app.config.source import SettingsError

_FILE: Final = "SSL_CERT_FILE"  # httpx reads it, as OpenSSL does


def client_ssl_context() -> ssl.SSLContext:
    """Return a context that trusts SSL_CERT_FILE, else SSL_CERT_DIR, else the authorities bundled with httpx.

    Raises `SettingsError` if SSL_CERT_FILE is wrong, because only a change of the environment can fix that.
    """
    import httpx  # noqa: PLC0415  takes a while to import, and the SQLite store needs none of it

    try:
        return httpx.create_ssl_context()
    except OSError as error:
        if not os.environ.get(_FILE):
            raise
        reason = (
            "holds no certificate in PEM" if isinstance(error, ssl.SSLError) else f"cannot be read: {error.strerror}"
        )
        raise SettingsError(f"{_FILE}: the file that it names {reason}") from None
