"""URLs of endpoints: the ones in the registry, and those on the host of a token's base URL."""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import urlsplit

from app.errors import ProviderMisconfigured
from app.refresh.providers import OAuthProvider
from app.tokens.models import is_base_url

_HOST: Final = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
_URL: Final = re.compile(r"(https?)://([^/?#@\\\s]+)(/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)")
_INTERNATIONAL: Final = "xn--"


class EndpointError(ValueError):
    """What is wrong with a URL or a host, without the text itself."""


def parse_endpoint(url: str, *, allow_insecure: bool) -> str:
    """Return the URL if it may be configured, or raise `EndpointError`.

    It is https and has a host name, without user information, query and fragment. With `allow_insecure` it may be http
    and have an address.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise EndpointError("must be a URL with a host and a path, without user information, query or fragment")
    scheme, place, _ = match.groups()
    if scheme != "https" and not allow_insecure:
        raise EndpointError("must start with https://")
    parse_host(place, allow_insecure=allow_insecure)
    return url


def parse_host(place: str, *, allow_insecure: bool) -> str:
    """Return `host` or `host:port` as they are compared, or raise `EndpointError`."""
    try:
        parts = urlsplit(f"//{place}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise EndpointError("has no valid host and port") from None
    if not host or port == 0 or parts.path or parts.query or parts.fragment or "@" in place:
        raise EndpointError("has no valid host and port")
    if _is_address(host):
        if not allow_insecure:
            raise EndpointError("must name a host, not an address")
        host = f"[{host}]" if ":" in host else host
    elif not _HOST.fullmatch(host) or host.rpartition(".")[2].isdigit():
        raise EndpointError("must have a host name in lower case of ASCII letters, digits, hyphens and dots")
    elif any(label.startswith(_INTERNATIONAL) for label in host.split(".")):
        raise EndpointError("must not have an international host name")
    return host if port in {None, 443} else f"{host}:{port}"


def token_endpoint(provider: OAuthProvider, base_url: str | None) -> str:
    """Return the URL of the token endpoint; raises `ProviderMisconfigured` if the base URL does not permit one."""
    return provider.token_url or _on_base_url(provider, provider.token_path, base_url)


def revocation_endpoint(provider: OAuthProvider, base_url: str | None) -> str:
    """Return the URL of the revocation endpoint; raises `ProviderMisconfigured` as `token_endpoint` does."""
    return provider.revoke_url or _on_base_url(provider, provider.revoke_path, base_url)


def _on_base_url(provider: OAuthProvider, path: str | None, base_url: str | None) -> str:
    if path is None:
        raise ProviderMisconfigured(f"{provider.name} has no such endpoint")
    if base_url is None:
        raise ProviderMisconfigured(
            f"the token has no base_url, so the host of {provider.name} is unknown", concerns_provider=False
        )
    if not is_base_url(base_url):
        raise ProviderMisconfigured(
            f"the base_url of the token is no URL that {provider.name} can be asked at", concerns_provider=False
        )
    try:
        host = parse_host(urlsplit(base_url).netloc.lower(), allow_insecure=provider.allow_insecure)
    except EndpointError:
        host = ""
    if host not in provider.allowed_hosts:
        raise ProviderMisconfigured(
            f"the host of the token's base_url is not in the allowed_hosts of {provider.name}", concerns_provider=False
        )
    return f"https://{host}{path}"


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
