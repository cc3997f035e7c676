"""Check a provider's entry against the network: names, TLS and discovery. It sends no secret and spends nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final

from app.errors import ProviderError
from app.refresh.provider_connection import ProviderConnections, ProviderRequest
from app.refresh.providers import OAuthProvider

MAXIMUM_HOSTS: Final = 20


@dataclass(frozen=True, slots=True)
class ProviderFinding:
    """One result; `problem` is `None` if it is as it should be."""

    text: str
    problem: str | None = None


async def check_provider(provider: OAuthProvider, connections: ProviderConnections) -> AsyncIterator[ProviderFinding]:
    """Yield a finding for each endpoint that can be reached over TLS, and one for the discovery document."""
    urls = [f"https://{host}{provider.token_path}" for host in sorted(provider.allowed_hosts)[:MAXIMUM_HOSTS]]
    for url in [provider.token_url] if provider.token_url is not None else urls:
        place = url.split("/")[2]
        try:
            await connections.reach(provider.name, url, allow_insecure=provider.allow_insecure)
        except ProviderError as error:
            yield ProviderFinding(place, error.detail)
        else:
            yield ProviderFinding(f"{place} can be reached")
    if provider.discovery_url is not None:
        yield await _discovery(provider, provider.discovery_url, connections)


async def _discovery(provider: OAuthProvider, url: str, connections: ProviderConnections) -> ProviderFinding:
    request = ProviderRequest(
        provider=provider.name,
        method="GET",
        url=url,
        headers={},
        body=None,
        allow_insecure=provider.allow_insecure,
    )
    try:
        answer = await connections.send(request, deadline=connections.deadline())
        document = json.loads(answer.body)
    except ProviderError as error:
        return ProviderFinding("discovery", error.detail)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        return ProviderFinding("discovery", f"{provider.name} answers with no discovery document")
    if document.get("token_endpoint") != provider.token_url:
        return ProviderFinding("discovery", f"{provider.name} publishes another token endpoint than the entry has")
    return ProviderFinding("discovery names the entry's token endpoint")
