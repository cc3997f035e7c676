"""Settings that verify users' JWTs."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, SecretStr
from pydantic_core import PydanticCustomError

from app.config.listening import is_host, is_loopback

_MINIMUM_SECRET_BYTES: Final = 32  # RFC 7518, section 3.2: at least as long as the hash


def _downloads_safely(url: str) -> str:
    """Refuse plain http, whose answer anybody on the way can replace by keys of their own."""
    try:
        parts = urlsplit(url)
        host, port, has_user = parts.hostname, parts.port, parts.username is not None or parts.password is not None
    except ValueError:
        host, port, has_user = None, 0, False
    if not host or not is_host(host) or port == 0 or has_user or parts.fragment or not url.isprintable() or " " in url:
        raise PydanticCustomError(
            "url", "must be a URL like https://abcdefgh.supabase.co/auth/v1/.well-known/jwks.json"
        )
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise PydanticCustomError("url", "must start with https:// (or http:// on this machine, for a stand-in)")
    return url


def _is_long_enough(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value().encode()) < _MINIMUM_SECRET_BYTES:
        raise PydanticCustomError("secret_length", f"has less than {_MINIMUM_SECRET_BYTES} bytes")
    return secret


KeySetUrl = Annotated[str, AfterValidator(_downloads_safely)]
JwtSecret = Annotated[SecretStr, AfterValidator(_is_long_enough)]
