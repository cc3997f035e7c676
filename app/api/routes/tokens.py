"""One token of one user: store, reveal, patch, rotate, rewrap, delete.

A request passes the middlewares, then the dependencies of its route in the order of the parameters: the call
(authentication, scope, token id), the precondition, the body. `TokenVault` does the work; an error that it raises
becomes a response in `app.api.problems`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app import errors
from app.api.answers import json_response, revealed_answer, token_answer
from app.api.conditional_requests import ChangeCondition, StoreCondition
from app.api.dependencies import DeleteCall, RevealCall, Revoke, RewrapCall, WriteCall, revoke_of, token_parameters
from app.api.direct_route import DirectRoute
from app.api.openapi import (
    BODY_ERRORS,
    DECRYPT_ERRORS,
    ENCRYPT_ERRORS,
    IF_MATCH,
    IF_NONE_MATCH,
    INCLUDE,
    MIN_TTL,
    PROVIDER_ERRORS,
    REVOKE,
    STORE_ERRORS,
    TOKEN_ID,
    extra,
    responses,
)
from app.api.problems import receipt_answer
from app.api.request_body import strict_body
from app.api.schemas.answers import Revealed, Token
from app.api.schemas.requests import ExchangeRequest, PatchTokenRequest, RefreshRequest, StoreTokenRequest
from app.api.token_response import TOKEN_RESPONSE, TokenResponse
from app.callers.service_keys import Scope
from app.refresh.revocation import TokenRevocation
from app.tokens.freshness import MAXIMUM_MIN_TTL_SECONDS
from app.tokens.models import RevealedToken, StoredToken
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault

if TYPE_CHECKING:  # imports aiohttp, which a vault without providers does not need
    from app.refresh.exchange import CodeExchange

router = APIRouter(prefix="/v1/users/{user_id}/tokens/{provider}", tags=["tokens"], route_class=DirectRoute)

StoreBody = Annotated[
    StoreTokenRequest | TokenResponse, Depends(strict_body(StoreTokenRequest, {TOKEN_RESPONSE: TokenResponse}))
]
ExchangeBody = Annotated[ExchangeRequest, Depends(strict_body(ExchangeRequest))]
RefreshBody = Annotated[RefreshRequest, Depends(strict_body(RefreshRequest))]
_SECONDS = re.compile(r"[0-9]{1,5}")
_AS_STORED = RevealOptions()
PatchBody = Annotated[PatchTokenRequest, Depends(strict_body(PatchTokenRequest))]


@router.put(
    "",
    summary="Store a token",
    response_model=Token,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS, *ENCRYPT_ERRORS, errors.VersionConflict, etag=True, created=True),
    openapi_extra=extra(
        *TOKEN_ID, IF_MATCH, IF_NONE_MATCH, body=StoreTokenRequest, other_bodies={TOKEN_RESPONSE: TokenResponse}
    ),
)
async def store_token(call: WriteCall, condition: StoreCondition, body: StoreBody) -> Response:
    """Create the token, or replace all of it: a field that is not given becomes empty. Needs `tokens:write`.

    The body is the token, or a provider's own token answer in its media type.
    """
    result = await call.vault.store(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _token_response(call.vault, result.token, status=201 if result.created else 200)


@router.get(
    "",
    summary="Reveal a token",
    response_model=Revealed,
    responses=responses(
        *STORE_ERRORS, *DECRYPT_ERRORS, *PROVIDER_ERRORS, errors.TokenNotFound, errors.TokenInactive, etag=True
    ),
    openapi_extra=extra(*TOKEN_ID, INCLUDE, MIN_TTL),
)
async def reveal_token(call: RevealCall, request: Request) -> Response:
    """Return the token with its access token decrypted. Needs `tokens:reveal`.

    A token that would expire within `min_ttl` seconds is refreshed first. If that fails while it is still valid, it is
    returned with `min_ttl_met` false; once it has expired, the problem is the answer. A token that cannot be refreshed
    is returned as it is, with `refreshable` false, also after it has expired.
    """
    options = _options(request)
    if options.include_refresh:
        call.authenticated.require_scope(Scope.REVEAL_REFRESH)
    return _revealed_response(await call.vault.reveal(call.token_id, caller=call.caller, options=options), options)


@router.post(
    "/refresh",
    summary="Refresh a token that its provider rejects",
    response_model=Revealed,
    responses=responses(
        *BODY_ERRORS,
        *STORE_ERRORS,
        *DECRYPT_ERRORS,
        *PROVIDER_ERRORS,
        errors.TokenNotFound,
        errors.TokenInactive,
        etag=True,
    ),
    openapi_extra=extra(*TOKEN_ID, body=RefreshRequest),
)
async def refresh_rejected_token(call: RevealCall, body: RefreshBody) -> Response:
    """Get a new access token from the provider and return it, if the token still has the version that was rejected;
    otherwise return it as it is. So many callers that got a 401 at once cause one refresh. Needs `tokens:reveal` and
    `tokens:refresh`.
    """
    call.authenticated.require_scope(Scope.REFRESH)
    options = RevealOptions(rejected_version=body.rejected_version)
    return _revealed_response(await call.vault.reveal(call.token_id, caller=call.caller, options=options), options)


@router.post(
    "/exchange",
    summary="Exchange an authorization code",
    response_model=Token,
    responses=responses(
        *BODY_ERRORS,
        *STORE_ERRORS,
        *ENCRYPT_ERRORS,
        *PROVIDER_ERRORS,
        errors.TokenInactive,
        etag=True,
        created=True,
    ),
    openapi_extra=extra(*TOKEN_ID, body=ExchangeRequest),
)
async def exchange_code(call: WriteCall, body: ExchangeBody, request: Request) -> Response:
    """Redeem the code of a user's consent at the provider, and store the tokens as a store does. The answer has no
    secret. A code that the provider refuses is `token_inactive`: the user must consent again. Needs `tokens:write`.
    """
    exchanger: CodeExchange | None = request.state.exchange
    if exchanger is None:
        raise errors.InvalidRequest.of_field("provider", "no OAuth providers are configured")
    result = await exchanger.exchange(call.token_id, body.to_authorization(), caller=call.caller)
    return _token_response(call.vault, result.token, status=201 if result.created else 200)


@router.patch(
    "",
    summary="Change a token's status or metadata",
    response_model=Token,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=PatchTokenRequest),
)
async def patch_token(call: WriteCall, condition: ChangeCondition, body: PatchBody) -> Response:
    """Change status and metadata; the secrets stay. Needs `tokens:write`."""
    token = await call.vault.patch(call.token_id, body.to_patch(), caller=call.caller, precondition=condition)
    return _token_response(call.vault, token)


@router.post(
    "/rotate",
    summary="Rotate a token",
    response_model=Token,
    responses=responses(
        *BODY_ERRORS, *STORE_ERRORS, *DECRYPT_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True
    ),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=StoreTokenRequest, other_bodies={TOKEN_RESPONSE: TokenResponse}),
)
async def rotate_token(call: WriteCall, condition: ChangeCondition, body: StoreBody) -> Response:
    """Replace the secret of an existing token; fields that are not given and the status stay. Needs `tokens:write`.

    Another `base_url` without a `refresh_token` removes the stored refresh token.
    """
    token = await call.vault.rotate(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _token_response(call.vault, token)


@router.post(
    "/rewrap",
    summary="Rewrap a token",
    response_model=Token,
    responses=responses(*STORE_ERRORS, *DECRYPT_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH),
)
async def rewrap_token(call: RewrapCall, condition: ChangeCondition) -> Response:
    """Encrypt the token under the primary key if it is under another one. The token, its version and its times stay.
    A token of any status can be rewrapped. Needs `tokens:admin`.
    """
    return _token_response(
        call.vault, await call.vault.rewrap(call.token_id, caller=call.caller, precondition=condition)
    )


@router.delete(
    "",
    summary="Delete a token",
    status_code=204,
    responses=responses(
        *STORE_ERRORS,
        *DECRYPT_ERRORS,
        *PROVIDER_ERRORS,
        errors.TokenNotFound,
        errors.TokenInactive,
        errors.TokenReferenced,
        errors.VersionConflict,
        receipt=True,
    ),
    openapi_extra=extra(*TOKEN_ID, REVOKE, IF_MATCH),
)
async def delete_token(call: DeleteCall, condition: ChangeCondition, request: Request) -> Response:
    """Delete the token permanently. Needs `tokens:delete`.

    With `revoke` its secrets are revoked at the provider first, the refresh token before the access token, and the
    answer is a receipt.
    """
    revoke = revoke_of(token_parameters(request))
    if revoke is None:
        await call.vault.delete(call.token_id, caller=call.caller, precondition=condition)
        return Response(status_code=204)
    revocation: TokenRevocation = request.state.revocation
    receipt = await revocation.delete(
        call.token_id, required=revoke is Revoke.REQUIRED, caller=call.caller, precondition=condition
    )
    return json_response(receipt_answer(receipt))


def _options(request: Request) -> RevealOptions:
    if not request.scope["query_string"]:
        return _AS_STORED
    parameters = token_parameters(request)
    include, min_ttl = parameters.get("include"), parameters.get("min_ttl")
    if include not in {None, "refresh_token"}:
        raise errors.InvalidRequest.of_field("include", "include must be refresh_token")
    if min_ttl is not None and not (_SECONDS.fullmatch(min_ttl) and int(min_ttl) <= MAXIMUM_MIN_TTL_SECONDS):
        raise errors.InvalidRequest.of_field("min_ttl", f"min_ttl must be 0 to {MAXIMUM_MIN_TTL_SECONDS} seconds")
    return RevealOptions(include_refresh=include is not None, min_ttl_seconds=None if min_ttl is None else int(min_ttl))


def _revealed_response(revealed: RevealedToken, options: RevealOptions) -> Response:
    answer = revealed_answer(revealed, include_refresh=options.include_refresh)
    return json_response(answer, version=revealed.token.version)


def _token_response(vault: TokenVault, token: StoredToken, *, status: int = 200) -> Response:
    answer = token_answer(token, refreshable=vault.is_refreshable(token))
    return json_response(answer, status=status, version=token.version)
