"""The token endpoint: OAuth 2.0 Token Exchange (RFC 8693), for agents and OAuth libraries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.answers import json_bytes
from app.api.authentication import AuthenticatedCaller, acting_for_user
from app.api.dependencies import Vault
from app.api.openapi import extra
from app.api.schemas.oauth import ACCESS_TOKEN_TYPE, IssuedToken, TokenExchangeRequest
from app.api.token_endpoint import FORM, OAuthClient, TokenEndpointRoute, token_exchange_request, token_responses
from app.callers.service_keys import Scope
from app.errors import OAuthRequestRefused, TokenInactive
from app.tokens.models import DEFAULT_SERVICE_TYPE, RevealedToken, TokenId

router = APIRouter(prefix="/oauth", tags=["oauth"], route_class=TokenEndpointRoute)

Client = Annotated[AuthenticatedCaller, Depends(OAuthClient(Scope.REVEAL))]
Exchange = Annotated[TokenExchangeRequest, Depends(token_exchange_request)]


@router.post(
    "/token",
    summary="Exchange a user's JWT for an access token",
    response_model=IssuedToken,
    responses=token_responses(),
    openapi_extra=extra(body=TokenExchangeRequest, media_type=FORM),
)
async def exchange_token(client: Client, exchange: Exchange, vault: Vault, request: Request) -> Response:
    """Return the access token that the user of `subject_token` has at `audience`, refreshed first as a reveal does.
    Needs `tokens:reveal`. Errors are OAuth's, not problems.
    """
    if request.state.user_jwts is None:
        raise OAuthRequestRefused(
            "the vault cannot verify users' JWTs: USER_JWT_ISSUER is not set", error="unsupported_grant_type"
        )
    client = await acting_for_user(request, client, exchange.subject_token.get_secret_value())
    provider, _, service_type = exchange.audience.partition("/")
    token_id = TokenId.parse(client.caller.on_behalf_of or "", provider, service_type or DEFAULT_SERVICE_TYPE)
    request.state.refused_token = token_id
    client.require_provider(provider)
    wanted = frozenset((exchange.scope or "").split())

    def accept(revealed: RevealedToken) -> None:
        expires_at = revealed.token.expires_at
        if expires_at is not None and expires_at <= datetime.now(UTC):
            raise TokenInactive("the token has expired, and the vault cannot refresh it")
        if not wanted <= _granted(revealed):
            raise OAuthRequestRefused("the user has not granted every scope", error="invalid_scope")

    revealed = await vault.reveal(token_id, caller=client.caller, accept=accept)
    answer = {
        "access_token": revealed.access_token.get_secret_value(),
        "issued_token_type": ACCESS_TOKEN_TYPE,
        "token_type": "Bearer",
        "expires_in": _expires_in(revealed),
        "scope": " ".join(revealed.token.scopes) or None,
    }
    known = {name: value for name, value in answer.items() if value is not None}
    # RFC 6749, section 5.1, wants both headers; the middleware sets Cache-Control
    return Response(json_bytes(known), headers={"Pragma": "no-cache"}, media_type="application/json")


def _granted(revealed: RevealedToken) -> frozenset[str]:
    return frozenset(" ".join(revealed.token.scopes).split())


def _expires_in(revealed: RevealedToken) -> int | None:
    """Return the whole seconds that are left, at least one; `None` if its expiry is unknown.

    Libraries, such as authlib, take 0 for a token that does not expire.
    """
    expires_at = revealed.token.expires_at
    return None if expires_at is None else max(1, int((expires_at - datetime.now(UTC)).total_seconds()))
