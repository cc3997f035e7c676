"""`httpx` authentication for the calls to a provider: the user's access token, and a new one after a 401.

with httpx.Client(auth=VaultAuth(vault, user_id, "google")) as google:
google.get("https://www.googleapis.com/calendar/v3/users/me/calendarList")
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from http import HTTPStatus
from typing import Final

import httpx

from token_vault_client import operations
from token_vault_client.client import AsyncVaultClient, VaultClient
from token_vault_client.models import DEFAULT_SERVICE_TYPE, RevealedToken
from token_vault_client.operations import Call

_LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

Step = httpx.Request | Call[RevealedToken]
Outcome = httpx.Response | RevealedToken | None


class WrongHostError(Exception):
    """The request does not go to where the token belongs, so the token was not sent."""


class _Auth(httpx.Auth):
    requires_request_body = True  # a request that is sent twice needs its body twice

    def __init__(self, user_id: str, provider: str, service_type: str) -> None:
        self._user_id = user_id
        self._provider = provider
        self._service_type = service_type
        self._rejected_when_new: int | None = None  # the version of a token

    def _steps(self, request: httpx.Request) -> Generator[Step, Outcome, None]:
        """Yield the calls to the vault and the requests to the provider, without input or output."""
        reveal = operations.reveal(self._user_id, self._provider, service_type=self._service_type)
        token = yield reveal
        assert isinstance(token, RevealedToken)  # noqa: S101  for the type checker
        response = yield _authorized(request, token)
        assert isinstance(response, httpx.Response)  # noqa: S101  for the type checker
        # another token cannot help if a new one was rejected: the endpoint may need another scope
        if response.status_code != HTTPStatus.UNAUTHORIZED or token.version == self._rejected_when_new:
            return
        refresh = operations.refresh(
            self._user_id, self._provider, rejected_version=token.version, service_type=self._service_type
        )
        # a token that cannot be refreshed may have been replaced
        fresh = yield refresh if token.refreshable else replace(reveal, from_cache=False)
        assert isinstance(fresh, RevealedToken)  # noqa: S101  for the type checker
        if fresh.version != token.version:
            response = yield _authorized(request, fresh)
            assert isinstance(response, httpx.Response)  # noqa: S101  for the type checker
            if response.status_code == HTTPStatus.UNAUTHORIZED:
                self._rejected_when_new = fresh.version


class VaultAuth(_Auth):
    """Authentication of an `httpx.Client`.

    Each request reveals the token, so give the `VaultClient` a cache for many requests. After a 401 the token is
    refreshed and the request sent once more, which needs the scope `tokens:refresh`; a token that the vault cannot
    refresh is revealed again. The 401 is the answer if the token has not changed, or a new one was rejected as well.
    Errors of the vault are raised. A token with a `base_url` is sent to that origin only, and no token over plain HTTP,
    except to this machine. The body of a request is kept in memory, because it may be sent twice.
    """

    def __init__(
        self, vault: VaultClient, user_id: str, provider: str, *, service_type: str = DEFAULT_SERVICE_TYPE
    ) -> None:
        super().__init__(user_id, provider, service_type)
        self._vault = vault

    def sync_auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.read()
        steps = self._steps(request)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Call):
                outcome = self._vault.call(step)
            else:
                outcome = yield step


class AsyncVaultAuth(_Auth):
    """Authentication of an `httpx.AsyncClient`; see `VaultAuth`."""

    def __init__(
        self, vault: AsyncVaultClient, user_id: str, provider: str, *, service_type: str = DEFAULT_SERVICE_TYPE
    ) -> None:
        super().__init__(user_id, provider, service_type)
        self._vault = vault

    async def async_auth_flow(self, request: httpx.Request) -> AsyncGenerator[httpx.Request, httpx.Response]:
        await request.aread()
        steps = self._steps(request)
        outcome: Outcome = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration:
                return
            if isinstance(step, Call):
                outcome = await self._vault.call(step)
            else:
                outcome = yield step


def _authorized(request: httpx.Request, token: RevealedToken) -> httpx.Request:
    url = request.url
    if url.scheme != "https" and url.host not in _LOOPBACK:
        raise WrongHostError(f"a token is not sent over plain HTTP to {url.host}")
    if token.base_url is not None and _origin(url) != _origin(httpx.URL(token.base_url)):
        raise WrongHostError(f"the token belongs to {token.base_url}, not to {url.host}")
    request.headers["Authorization"] = f"Bearer {token.access_token}"
    return request


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.host, url.port or (443 if url.scheme == "https" else 80)
