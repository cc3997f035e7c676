"""Requests to OAuth providers: refresh, exchange and revoke."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Final, Literal, TypeVar
from urllib.parse import urlencode

from aiohttp.abc import AbstractResolver
from pydantic import SecretStr

from app.errors import GrantRejected, ProviderMisconfigured, RevocationUnsupported
from app.refresh.client_authentication import authenticate
from app.refresh.endpoints import revocation_endpoint, token_endpoint
from app.refresh.observer import RefreshObserver, Unobserved
from app.refresh.provider_connection import (
    CONNECT_SECONDS,
    TOTAL_SECONDS,
    ProviderAnswer,
    ProviderConnections,
    ProviderRequest,
)
from app.refresh.provider_outages import ProviderOutages
from app.refresh.providers import OAuthProvider, Revocation
from app.refresh.public_addresses import HostResolver
from app.refresh.token_answer import (
    ClientRefusedError,
    ProviderTokens,
    error_code,
    parse_tokens,
    raise_for_error,
    require_success,
)

__all__ = ["ProviderClient", "ProviderTokens", "TokenTypeHint"]
TokenTypeHint = Literal["access_token", "refresh_token"]
T = TypeVar("T")
_OF_TOKEN: Final = frozenset({HTTPStatus.OK, HTTPStatus.BAD_REQUEST})  # statuses of answers about the token itself
_NOT_KNOWN: Final = frozenset({"invalid_token", "invalid_grant"})  # to the provider: so there is nothing to revoke


class ProviderClient:
    """Asks providers for tokens. No request that can spend a refresh token or a code is sent twice.

    If the client authentication is refused, the provider has not looked at the grant, so the next client secret of the
    entry is tried. Every method raises `ProviderUnavailable` or `ProviderMisconfigured`.
    """

    def __init__(
        self,
        *,
        tls: ssl.SSLContext,
        new_resolver: Callable[[], AbstractResolver] = HostResolver,
        connect_seconds: float = CONNECT_SECONDS,
        total_seconds: float = TOTAL_SECONDS,
        observer: RefreshObserver | None = None,
    ) -> None:
        self._observer = observer or Unobserved()
        self.outages = ProviderOutages()
        self._connections = ProviderConnections(
            tls=tls, new_resolver=new_resolver, connect_seconds=connect_seconds, total_seconds=total_seconds
        )

    async def refresh(
        self, provider: OAuthProvider, *, refresh_token: SecretStr, base_url: str | None, scopes: tuple[str, ...]
    ) -> ProviderTokens:
        """Spend the refresh token; raises `GrantRejected` if the provider refuses it."""
        parameters = {"grant_type": "refresh_token", "refresh_token": refresh_token.get_secret_value()}
        if provider.send_scope and scopes:
            parameters["scope"] = " ".join(scopes)
        return await self._tokens(provider, parameters, base_url)

    async def exchange(
        self,
        provider: OAuthProvider,
        *,
        code: SecretStr,
        redirect_uri: str,
        code_verifier: SecretStr | None,
        base_url: str | None,
    ) -> ProviderTokens:
        """Redeem an authorization code; raises `GrantRejected` if the provider refuses it."""
        parameters = {
            "grant_type": "authorization_code",
            "code": code.get_secret_value(),
            "redirect_uri": redirect_uri,
        }
        if code_verifier is not None:
            parameters["code_verifier"] = code_verifier.get_secret_value()
        return await self._tokens(provider, parameters, base_url)

    async def revoke(
        self,
        provider: OAuthProvider,
        *,
        token: SecretStr,
        hint: TokenTypeHint,
        base_url: str | None,
        until: float | None = None,
    ) -> None:
        """Revoke one token before a time on the event loop's clock; raises `RevocationUnsupported` if it cannot be.

        A token that the provider does not know counts as revoked (RFC 7009, section 2.2). An access token that revokes
        itself must be valid; otherwise `GrantRejected` is raised.
        """
        if not provider.revokes:
            raise RevocationUnsupported(f"{provider.name} has no endpoint that revokes a token")
        url = revocation_endpoint(provider, base_url)
        deadline = self._connections.deadline()
        deadline = deadline if until is None else min(deadline, until)
        parameters = {"token": token.get_secret_value(), "token_type_hint": hint}
        with self.outages.observing(provider):
            try:
                if provider.revocation is Revocation.DELETE_WITH_ACCESS_TOKEN:
                    await self._delete(provider, url, token, hint, deadline)
                elif provider.revocation is Revocation.TOKEN_ONLY:
                    _require_revoked(provider, await self._post(provider, url, parameters, {}, deadline))
                else:
                    await self._authenticated(provider, url, parameters, partial(_require_revoked, provider), deadline)
            except ClientRefusedError:
                raise ProviderMisconfigured(f"{provider.name} refuses a revocation without a client") from None

    async def close(self) -> None:
        """Close the connections."""
        await self._connections.close()

    async def _tokens(
        self, provider: OAuthProvider, parameters: Mapping[str, str], base_url: str | None
    ) -> ProviderTokens:
        read = partial(parse_tokens, provider.name, reauth_errors=provider.reauth_errors)
        url, deadline = token_endpoint(provider, base_url), self._connections.deadline()
        with self.outages.observing(provider):
            return await self._authenticated(provider, url, parameters, read, deadline)

    async def _authenticated(
        self,
        provider: OAuthProvider,
        url: str,
        parameters: Mapping[str, str],
        read: Callable[[ProviderAnswer], T],
        deadline: float,
    ) -> T:
        for secret in provider.client_secrets:
            headers, proof = authenticate(provider, secret, endpoint=url)
            answer = await self._post(provider, url, {**parameters, **proof}, headers, deadline)
            with suppress(ClientRefusedError):
                return read(answer)
        raise ProviderMisconfigured(f"{provider.name} refuses the vault's client id or client secret")

    async def _post(
        self,
        provider: OAuthProvider,
        url: str,
        parameters: Mapping[str, str],
        headers: Mapping[str, str],
        deadline: float,
    ) -> ProviderAnswer:
        is_json = provider.body == "json"
        body = json.dumps(parameters) if is_json else urlencode(parameters)
        kind = "application/json" if is_json else "application/x-www-form-urlencoded"
        request = ProviderRequest(
            provider=provider.name,
            method="POST",
            url=url,
            headers={**dict(provider.headers), **headers, "Content-Type": kind},
            body=body.encode(),
            allow_insecure=provider.allow_insecure,
        )
        return await self._send(request, deadline)

    async def _delete(
        self, provider: OAuthProvider, url: str, token: SecretStr, hint: TokenTypeHint, deadline: float
    ) -> None:
        if hint != "access_token":
            raise RevocationUnsupported(f"{provider.name} revokes a refresh token together with its access token only")
        request = ProviderRequest(
            provider=provider.name,
            method="DELETE",
            url=url,
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
            body=None,
            allow_insecure=provider.allow_insecure,
        )
        answer = await self._send(request, deadline)
        if answer.status == HTTPStatus.UNAUTHORIZED:  # expired, and then the refresh token of the grant still works
            raise GrantRejected(f"{provider.name} does not know the access token", reason="invalid_token")
        require_success(provider.name, answer)

    async def _send(self, request: ProviderRequest, deadline: float) -> ProviderAnswer:
        began_at = time.perf_counter()
        try:
            return await self._connections.send(request, deadline=deadline)
        finally:
            self._observer.answered(request.provider, time.perf_counter() - began_at)


def _require_revoked(provider: OAuthProvider, answer: ProviderAnswer) -> None:
    code = error_code(answer)
    if answer.status not in _OF_TOKEN or code is None:
        require_success(provider.name, answer)
    elif code == "unsupported_token_type":
        raise RevocationUnsupported(f"{provider.name} does not revoke tokens of this kind")
    elif code not in _NOT_KNOWN:
        raise_for_error(provider.name, answer, {"error": code}, reauth_errors=frozenset())
