"""Who may call: service keys, users' JWTs and limits."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from app.callers.rate_limits import RequestLimits
from app.callers.service_key_directory import ServiceKeyDirectory
from app.callers.service_keys import KeyListError, parse_key_list
from app.config.certificate_authorities import client_ssl_context
from app.config.settings import Settings, SettingsError
from app.observability.in_memory_counters import InMemoryUserJwtCounters

if TYPE_CHECKING:  # imports PyJWT, which takes a while
    from app.callers.jwks import JwksKeys
    from app.callers.user_jwt import UserJwtVerifier, VerificationKeys
    from app.callers.user_jwt_refusals import UserJwtCounters


def build_service_key_directory(settings: Settings) -> ServiceKeyDirectory:
    """Build the directory of service keys; raises `SettingsError` if SERVICE_KEYS is not a list of keys."""
    try:
        text = settings.service_keys.get_secret_value() if settings.service_keys else "[]"
        fixed = parse_key_list(text)
    except KeyListError as error:
        raise SettingsError(f"SERVICE_KEYS: {error}") from None
    return ServiceKeyDirectory(fixed=fixed, file=settings.service_keys_file)


@dataclass(frozen=True, slots=True)
class UserJwts:
    """The verifier of users' JWTs, and its keys if they are downloaded."""

    verifier: UserJwtVerifier
    key_set: JwksKeys | None = None


def build_user_jwts(settings: Settings, *, counters: UserJwtCounters | None = None) -> UserJwts | None:
    """Build the verifier; `None` without USER_JWT_ISSUER. Downloads nothing yet. Raises `SettingsError`."""
    if settings.user_jwt_issuer is None:
        return None
    from app.callers.jwks import JwksKeys  # noqa: PLC0415  imports PyJWT
    from app.callers.user_jwt import SharedSecret, UserJwtVerifier  # noqa: PLC0415  imports PyJWT

    counters = counters or InMemoryUserJwtCounters()
    key_set = None
    keys: VerificationKeys
    if settings.user_jwt_secret is not None:
        keys = SharedSecret(settings.user_jwt_secret.get_secret_value().encode())
    elif settings.user_jwt_jwks_url is not None:
        keys = key_set = JwksKeys(download=_key_set_download(settings.user_jwt_jwks_url), counters=counters)
    else:
        raise SettingsError("USER_JWT_JWKS_URL or USER_JWT_SECRET is needed because USER_JWT_ISSUER is set")
    verifier = UserJwtVerifier(
        issuer=settings.user_jwt_issuer, audience=settings.user_jwt_audience, keys=keys, counters=counters
    )
    return UserJwts(verifier, key_set)


def _key_set_download(url: str) -> Callable[[], Awaitable[bytes]]:
    from app.callers.jwks_download import download_key_set  # noqa: PLC0415  imports httpx

    return partial(download_key_set, url, client_ssl_context())


def build_limits(settings: Settings) -> RequestLimits:
    """Build the limits on the callers of one process."""
    return RequestLimits(
        tokens_per_second=settings.rate_limit_per_second,
        concurrent_per_service=settings.maximum_concurrent_per_service,
        concurrent=settings.maximum_concurrent,
    )
