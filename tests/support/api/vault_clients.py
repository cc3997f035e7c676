"""The Python client over a service: the synchronous one, and the asynchronous one behind the same methods."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import httpx
from token_vault_client import AsyncVaultClient, VaultClient

from tests.support.api.service import Service
from tests.support.stack.loopback import PLAIN_HTTP

KINDS: Final = ("sync", "async")


@contextmanager
def vault_client(kind: str, service: Service, key: str = "full", **options: Any) -> Iterator[VaultClient]:
    """Open a client of this kind with one of the service's keys; `options` are the client's."""
    if kind == "sync":
        http = httpx.Client(timeout=60, trust_env=False, verify=PLAIN_HTTP)
        with VaultClient(service.url, service.keys[key], http=http, **options) as client:
            yield client
        return
    with asyncio.Runner() as runner:
        asynchronous = AsyncVaultClient(
            service.url,
            service.keys[key],
            http=httpx.AsyncClient(timeout=60, trust_env=False, verify=PLAIN_HTTP),
            **options,
        )
        yield cast("VaultClient", Blocking(asynchronous, runner))
        runner.run(asynchronous.close())


class Blocking:
    """An asynchronous client whose methods wait for their result."""

    def __init__(self, client: AsyncVaultClient, runner: asyncio.Runner) -> None:
        self._client = client
        self._runner = runner

    def __repr__(self) -> str:
        return repr(self._client)

    def on_behalf_of(self, user_jwt: str) -> Blocking:
        return Blocking(self._client.on_behalf_of(user_jwt), self._runner)

    def for_purpose(self, purpose: str) -> Blocking:
        return Blocking(self._client.for_purpose(purpose), self._runner)

    def list_all(self, **options: Any) -> list[Any]:
        async def collected() -> list[Any]:
            return [one async for one in self._client.list_all(**options)]

        return self._runner.run(collected())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._client, name)

        def wait(*arguments: Any, **options: Any) -> Any:
            return self._runner.run(method(*arguments, **options))

        return wait
