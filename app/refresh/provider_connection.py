"""HTTP requests to providers, bounded in time and size, that tell a request that was sent from one that was not.

Differences from aiohttp's defaults, each with its reason in docs/decisions/provider-transport.md:

- No redirects, no proxies, no cookies, no retries, no compression.
- Public addresses only, checked on the socket that is connected, unless the provider's entry permits others.
- A new connection for each request: on an idle one that the provider has closed, a request that was never read would
  look like one that may have spent a refresh token.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from app.errors import ProviderMisconfigured, ProviderUnavailable
from app.refresh.public_addresses import HostResolver, PrivateAddressError, public_socket

CONNECT_SECONDS: Final = 2.0
TOTAL_SECONDS: Final = 10.0
MAXIMUM_ANSWER_BYTES: Final = 64 * 1024
MAXIMUM_CONNECTIONS: Final = 256  # to one provider
_CONNECTIONS_TO_HOST: Final = 64  # of a provider with many, a host that hangs leaves the others theirs
_UNKNOWN_HOST: Final = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)})
_HEADERS: Final = {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": "pulseplan-token-vault"}


@dataclass(frozen=True, slots=True)
class ProviderAnswer:
    """A whole answer. `repr` hides the body, which holds tokens."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def __repr__(self) -> str:
        return f"ProviderAnswer(status={self.status}, {len(self.body)} bytes)"


@dataclass(frozen=True, slots=True)
class ProviderRequest:
    """A request. `repr` hides everything but method and provider: the rest holds secrets."""

    provider: str
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    allow_insecure: bool = False

    def __repr__(self) -> str:
        return f"ProviderRequest({self.method} to {self.provider})"


class ProviderConnections:
    """Sends requests. Each provider has connections and a resolver of host names of its own, so none waits for another.

    A lookup that hangs keeps its thread: of a Canvas entry, each of many hosts may have a name server that hangs.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        new_resolver: Callable[[], AbstractResolver] = HostResolver,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self._tls = tls
        self._new_resolver = new_resolver
        self._connect_seconds = connect_seconds
        self._total_seconds = total_seconds
        self._sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}
        self._resolvers: list[AbstractResolver] = []

    def deadline(self) -> float:
        """Return the time on the event loop's clock at which requests that begin now have failed."""
        return asyncio.get_running_loop().time() + self._total_seconds

    async def send(self, request: ProviderRequest, *, deadline: float) -> ProviderAnswer:
        """Return the answer, whatever its status.

        Raises `ProviderUnavailable`, whose `sent` is false only if no byte of the request can have left, and
        `ProviderMisconfigured` for a host that is unknown or not public.
        """
        progress = SimpleNamespace(connected=False)
        name = request.provider
        try:
            async with asyncio.timeout_at(deadline):
                return await self._send(request, progress)
        except aiohttp.ClientConnectorDNSError as error:
            raise _meaning_of_dns_error(name, error.os_error) from None
        except aiohttp.ClientSSLError:
            raise ProviderUnavailable(f"{name} offers no TLS that the vault trusts", sent=progress.connected) from None
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, PrivateAddressError):
                raise ProviderMisconfigured(f"the host of {name} has an address that is not public") from None
            raise ProviderUnavailable(f"{name} cannot be reached", sent=progress.connected) from None
        except aiohttp.InvalidURL:
            raise ProviderMisconfigured(f"the URL of {name} cannot be requested") from None
        except TimeoutError:
            raise ProviderUnavailable(f"{name} does not answer in time", sent=progress.connected) from None
        except (aiohttp.ClientError, OSError, ValueError, RuntimeError):
            detail = f"{name} ends the connection, or does not answer in HTTP"
            raise ProviderUnavailable(detail, sent=progress.connected) from None

    async def reach(self, provider: str, url: str, *, allow_insecure: bool) -> None:
        """Connect, complete the TLS handshake and send nothing that changes anything: HEAD, without parameters.

        Raises as `send` does.
        """
        request = ProviderRequest(
            provider=provider, method="HEAD", url=url, headers={}, body=None, allow_insecure=allow_insecure
        )
        try:
            await self.send(request, deadline=self.deadline())
        except ProviderUnavailable as error:
            if not error.sent:
                raise

    async def close(self) -> None:
        """Close the connections."""
        for session in self._sessions.values():
            await session.close()
        for resolver in self._resolvers:
            await resolver.close()
        self._sessions.clear()
        self._resolvers.clear()

    async def _send(self, request: ProviderRequest, progress: SimpleNamespace) -> ProviderAnswer:
        async with self._session(request.provider, request.allow_insecure).request(
            request.method,
            URL(request.url, encoded=True),
            headers={**_HEADERS, **request.headers},
            data=request.body,
            allow_redirects=False,
            trace_request_ctx=progress,
        ) as answer:
            body = bytearray()
            async for piece in answer.content.iter_any():
                body += piece
                if len(body) > MAXIMUM_ANSWER_BYTES:
                    answer.close()
                    raise ProviderUnavailable(f"{request.provider} answers with more than 64 KiB", sent=True)
            headers = {header.lower(): value for header, value in answer.headers.items()}
            return ProviderAnswer(answer.status, headers, bytes(body))

    def _session(self, provider: str, allow_insecure: bool) -> aiohttp.ClientSession:  # noqa: FBT001  a key
        session = self._sessions.get((provider, allow_insecure))
        if session is None:
            resolver = self._new_resolver()
            self._resolvers.append(resolver)
            connector = aiohttp.TCPConnector(
                ssl=self._tls,
                resolver=resolver,
                socket_factory=None if allow_insecure else public_socket,
                limit=MAXIMUM_CONNECTIONS,
                limit_per_host=_CONNECTIONS_TO_HOST,
                force_close=True,
            )
            session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_seconds),
                trace_configs=[_connection_trace()],
                auto_decompress=False,
                trust_env=False,
            )
            session._retry_connection = False  # noqa: SLF001  there is no public switch; a test counts the requests
            self._sessions[provider, allow_insecure] = session
        return session


def _connection_trace() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()

    async def connected(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: Any) -> None:  # noqa: ANN401
        context.trace_request_ctx.connected = True  # from here on a byte of the request may have left

    trace.on_connection_create_end.append(connected)
    trace.on_connection_reuseconn.append(connected)
    return trace


def _meaning_of_dns_error(name: str, error: OSError) -> ProviderMisconfigured | ProviderUnavailable:
    if isinstance(error, socket.gaierror) and error.errno in _UNKNOWN_HOST:
        return ProviderMisconfigured(f"the host of {name} is unknown")
    return ProviderUnavailable(f"the host of {name} cannot be resolved", sent=False)
