"""Supabase clients: asynchronous for the service, synchronous for scripts.

Importing `supabase` takes seconds, so this module is imported only if the Supabase store is chosen.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cache
from typing import Final

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from pydantic import SecretStr
from supabase import AsyncClient, AsyncClientOptions, Client, create_client
from supabase.lib.client_options import SyncClientOptions

from app.config.certificate_authorities import client_ssl_context
from app.config.settings import SettingsError, load_settings

CONNECT_SECONDS: Final = 1.0
READ_SECONDS: Final = 2.0
MAXIMUM_CONNECTIONS: Final = 64
_KEEP_ALIVE_SECONDS: Final = 50.0  # below the 60 s after which gateways cut idle connections


async def open_supabase_client(
    *,
    url: str,
    service_key: SecretStr,
    on_response: Callable[[httpx.Response], Awaitable[None]],
    function_read_seconds: Mapping[str, float],
) -> tuple[AsyncClient, httpx.AsyncClient]:
    """Return a client for the table API and the HTTP client below it, which the caller closes.

    `function_read_seconds` maps the name of a slow database function to its own read time-out, because the library
    has no time-out for a single call. Raises `SettingsError` if SSL_CERT_FILE is wrong.

    Differences from the library's defaults:

    - aiohttp is the transport: httpx's own pool loses a slot for each request that is cancelled while it waits
      (encode/httpcore#1093), and takes more than twice the time.
    - No redirects: the library would send the service key and the body to any host that a redirect names.
    - No retries, neither the library's (four, over seven seconds) nor aiohttp's, which repeats a DELETE whose answer
      was cut and then finds nothing. The repository decides what may be repeated.
    - Time-outs of seconds instead of two minutes.
    """
    read_seconds = {f"/rpc/{function}": seconds for function, seconds in function_read_seconds.items()}

    async def set_read_timeout(request: httpx.Request) -> None:
        for path, seconds in read_seconds.items():
            if request.url.path.endswith(path):
                request.extensions["timeout"]["read"] = seconds

    tls = client_ssl_context()
    connector = aiohttp.TCPConnector(limit=MAXIMUM_CONNECTIONS, keepalive_timeout=_KEEP_ALIVE_SECONDS, ssl=tls)
    session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar())
    session._retry_connection = False  # noqa: SLF001  there is no public switch; a test counts the DELETE requests
    http = httpx.AsyncClient(
        transport=AiohttpTransport(verify=tls, client=session),  # else it loads the authorities a second time
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
        follow_redirects=False,
        event_hooks={"request": [set_read_timeout], "response": [on_response]},
    )
    options = AsyncClientOptions(
        httpx_client=http, postgrest_client_retry=False, auto_refresh_token=False, persist_session=False
    )
    return AsyncClient(url, service_key.get_secret_value(), options), http


@cache
def get_supabase_client() -> Client:
    """Build the synchronous client for scripts from the environment, once. Raises `SettingsError`.

    Redirects and retries are off and time-outs are seconds, as in `open_supabase_client`.
    """
    settings = load_settings()
    if settings.supabase_url is None or settings.supabase_service_key is None:
        raise SettingsError("SUPABASE_URL and SUPABASE_SERVICE_KEY must both be set")
    http = httpx.Client(
        verify=client_ssl_context(),
        timeout=httpx.Timeout(READ_SECONDS, connect=CONNECT_SECONDS),
        follow_redirects=False,
    )
    options = SyncClientOptions(
        httpx_client=http, postgrest_client_retry=False, auto_refresh_token=False, persist_session=False
    )
    return create_client(settings.supabase_url, settings.supabase_service_key.get_secret_value(), options)
