"""One token of one user: store, reveal, patch, rotate, rewrap, delete.

A request passes the middlewares, then the dependencies of its route in the order of the parameters: the call
(authentication, scope, token id), the precondition, the body. `TokenVault` does the work; an error that it raises
becomes a response in `app.api.problems`.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app import errors
from app.api.answers import json_response, revealed_answer, token_answer
from app.api.conditional_requests import ChangeCondition, StoreCondition
from app.api.dependencies import DeleteCall, RevealCall, RewrapCall, WriteCall
from app.api.direct_route import DirectRoute
from app.api.openapi import (
    BODY_ERRORS,
    DECRYPT_ERRORS,
    ENCRYPT_ERRORS,
    IF_MATCH,
    IF_NONE_MATCH,
    INCLUDE,
    PROVIDER_ERRORS,
    STORE_ERRORS,
    TOKEN_ID,
    extra,
    responses,
)
from app.api.request_body import strict_body
from app.api.schemas import PatchTokenRequest, Revealed, StoreTokenRequest, Token
from app.callers.service_keys import Scope
from app.tokens.models import StoredToken

router = APIRouter(prefix="/v1/users/{user_id}/tokens/{provider}", tags=["tokens"], route_class=DirectRoute)

StoreBody = Annotated[StoreTokenRequest, Depends(strict_body(StoreTokenRequest))]
PatchBody = Annotated[PatchTokenRequest, Depends(strict_body(PatchTokenRequest))]


@router.put(
    "",
    summary="Store a token",
    response_model=Token,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS, *ENCRYPT_ERRORS, errors.VersionConflict, etag=True, created=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, IF_NONE_MATCH, body=StoreTokenRequest),
)
async def store(call: WriteCall, condition: StoreCondition, body: StoreBody) -> Response:
    """Create the token, or replace all of it: a field that is not given becomes empty. Needs `tokens:write`."""
    result = await call.vault.store(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _token_response(result.token, status=201 if result.created else 200)


@router.get(
    "",
    summary="Reveal a token",
    response_model=Revealed,
    responses=responses(
        *STORE_ERRORS, *DECRYPT_ERRORS, *PROVIDER_ERRORS, errors.TokenNotFound, errors.TokenInactive, etag=True
    ),
    openapi_extra=extra(*TOKEN_ID, INCLUDE),
)
async def reveal(call: RevealCall, request: Request) -> Response:
    """Return the token with its access token decrypted. Needs `tokens:reveal`."""
    include_refresh = _includes_refresh(request)
    if include_refresh:
        call.authenticated.require_scope(Scope.REVEAL_REFRESH)
    revealed = await call.vault.reveal(call.token_id, caller=call.caller, include_refresh=include_refresh)
    answer = revealed_answer(revealed, include_refresh=include_refresh)
    return json_response(answer, version=revealed.token.version)


@router.patch(
    "",
    summary="Change a token's status or metadata",
    response_model=Token,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=PatchTokenRequest),
)
async def patch(call: WriteCall, condition: ChangeCondition, body: PatchBody) -> Response:
    """Change status and metadata; the secrets stay. Needs `tokens:write`."""
    token = await call.vault.patch(call.token_id, body.to_patch(), caller=call.caller, precondition=condition)
    return _token_response(token)


@router.post(
    "/rotate",
    summary="Rotate a token",
    response_model=Token,
    responses=responses(
        *BODY_ERRORS, *STORE_ERRORS, *DECRYPT_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True
    ),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=StoreTokenRequest),
)
async def rotate(call: WriteCall, condition: ChangeCondition, body: StoreBody) -> Response:
    """Replace the secret of an existing token; fields that are not given and the status stay. Needs `tokens:write`.

    Another `base_url` without a `refresh_token` removes the stored refresh token.
    """
    token = await call.vault.rotate(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _token_response(token)


@router.post(
    "/rewrap",
    summary="Rewrap a token",
    response_model=Token,
    responses=responses(*STORE_ERRORS, *DECRYPT_ERRORS, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH),
)
async def rewrap(call: RewrapCall, condition: ChangeCondition) -> Response:
    """Encrypt the token under the primary key if it is under another one. The token, its version and its times stay.
    A token of any status can be rewrapped. Needs `tokens:admin`.
    """
    return _token_response(await call.vault.rewrap(call.token_id, caller=call.caller, precondition=condition))


@router.delete(
    "",
    summary="Delete a token",
    status_code=204,
    responses=responses(*STORE_ERRORS, errors.TokenNotFound, errors.VersionConflict),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH),
)
async def delete(call: DeleteCall, condition: ChangeCondition) -> Response:
    """Delete the token permanently. Needs `tokens:delete`."""
    await call.vault.delete(call.token_id, caller=call.caller, precondition=condition)
    return Response(status_code=204)


def _includes_refresh(request: Request) -> bool:
    include = request.query_params.get("include") if request.scope["query_string"] else None
    if include not in {None, "refresh_token"}:
        raise errors.InvalidRequest.of_field("include", "include must be refresh_token")
    return include is not None


def _token_response(token: StoredToken, *, status: int = 200) -> Response:
    return json_response(token_answer(token), status=status, version=token.version)
