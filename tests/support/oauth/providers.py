"""Providers for tests, parsed as the settings are."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from app.refresh.observer import RefreshObserver
from app.refresh.provider_client import ProviderClient
from app.refresh.provider_list import ProviderSource
from app.refresh.providers import OAuthProvider
from app.refresh.public_addresses import HostResolver
from tests.support.stack.loopback import PLAIN_HTTP


def provider_of(entry: dict[str, Any], name: str = "acme") -> OAuthProvider:
    """Return the provider of one registry entry."""
    [provider] = ProviderSource(text=SecretStr(json.dumps({name: entry}))).load().providers
    return provider


@asynccontextmanager
async def provider_client(
    *,
    tls: Any = PLAIN_HTTP,
    resolver: AbstractResolver | None = None,
    connect_seconds: float = 2.0,
    total_seconds: float = 10.0,
    observer: RefreshObserver | None = None,
) -> AsyncIterator[ProviderClient]:
    """Open a client during the block."""
    client = ProviderClient(
        tls=tls,
        new_resolver=HostResolver if resolver is None else lambda: resolver,
        connect_seconds=connect_seconds,
        total_seconds=total_seconds,
        observer=observer,
    )
    try:
        yield client
    finally:
        await client.close()
