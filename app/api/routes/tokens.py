"""One token of one user: store, reveal, change, rotate, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app import errors
from app.api.dependencies import DeleteCall, RevealCall, RewrapCall, WriteCall
from app.api.openapi import BODY, IF_MATCH, IF_NONE_MATCH, INCLUDE, OPEN, SEAL, STORE, TOKEN_ID, answers, extra
from app.api.preconditions import ChangeCondition, StoreCondition
from app.api.request_body import strict_body
from app.api.schemas import (
    PatchTokenRequest,
    Revealed,
    StoreTokenRequest,
    Token,
    json_answer,
    revealed_body,
    token_fields,
)
from app.callers.service_keys import Scope
from app.tokens.models import StoredToken

router = APIRouter(prefix="/v1/users/{user_id}/tokens/{provider}", tags=["tokens"])

StoreBody = Annotated[StoreTokenRequest, Depends(strict_body(StoreTokenRequest))]
PatchBody = Annotated[PatchTokenRequest, Depends(strict_body(PatchTokenRequest))]


@router.put(
    "",
    summary="Store a token",
    response_model=Token,
    responses=answers(*BODY, *STORE, *SEAL, errors.VersionConflict, etag=True, created=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, IF_NONE_MATCH, body=StoreTokenRequest),
)
async def store(call: WriteCall, condition: StoreCondition, body: StoreBody) -> Response:
    """Create the token, or replace it whole: what is not given is empty afterwards. Needs `tokens:write`."""
    result = await call.vault.store(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _answer(result.token, status=201 if result.created else 200)


@router.get(
    "",
    summary="Reveal a token",
    response_model=Revealed,
    responses=answers(*STORE, *OPEN, errors.TokenNotFound, errors.TokenInactive, etag=True),
    openapi_extra=extra(*TOKEN_ID, INCLUDE),
)
async def reveal(call: RevealCall, request: Request) -> Response:
    """Decrypt the access token. Needs `tokens:reveal`."""
    include_refresh = _wants_refresh(request)
    if include_refresh:
        call.authenticated.require_scope(Scope.REVEAL_REFRESH)
    revealed = await call.vault.reveal(call.token_id, caller=call.caller, include_refresh=include_refresh)
    return json_answer(revealed_body(revealed, include_refresh=include_refresh), version=revealed.token.version)


@router.patch(
    "",
    summary="Change a token's status or metadata",
    response_model=Token,
    responses=answers(*BODY, *STORE, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=PatchTokenRequest),
)
async def patch(call: WriteCall, condition: ChangeCondition, body: PatchBody) -> Response:
    """Change what is no secret. Needs `tokens:write`."""
    token = await call.vault.patch(call.token_id, body.to_patch(), caller=call.caller, precondition=condition)
    return _answer(token)


@router.post(
    "/rotate",
    summary="Rotate a token",
    response_model=Token,
    responses=answers(*BODY, *STORE, *OPEN, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH, body=StoreTokenRequest),
)
async def rotate(call: WriteCall, condition: ChangeCondition, body: StoreBody) -> Response:
    """Replace the secret of an existing token; what is not given stays, the status too. Needs `tokens:write`."""
    token = await call.vault.rotate(call.token_id, body.to_input(), caller=call.caller, precondition=condition)
    return _answer(token)


@router.post(
    "/rewrap",
    summary="Rewrap a token",
    response_model=Token,
    responses=answers(*STORE, *OPEN, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH),
)
async def rewrap(call: RewrapCall, condition: ChangeCondition) -> Response:
    """Encrypt the token under the current key, where it is under another one. The token itself, its version and its
    times stay, and its status does not matter. Needs `tokens:admin`.
    """
    return _answer(await call.vault.rewrap(call.token_id, caller=call.caller, precondition=condition))


@router.delete(
    "",
    summary="Delete a token",
    status_code=204,
    responses=answers(*STORE, errors.TokenNotFound, errors.VersionConflict),
    openapi_extra=extra(*TOKEN_ID, IF_MATCH),
)
async def delete(call: DeleteCall, condition: ChangeCondition) -> Response:
    """Delete the token for good. Needs `tokens:delete`."""
    await call.vault.delete(call.token_id, caller=call.caller, precondition=condition)
    return Response(status_code=204)


def _wants_refresh(request: Request) -> bool:
    include = request.query_params.get("include") if request.scope["query_string"] else None
    if include not in {None, "refresh_token"}:
        raise errors.InvalidRequest.of_field("include", "include can only be refresh_token")
    return include is not None


def _answer(token: StoredToken, *, status: int = 200) -> Response:
    return json_answer(Token(**token_fields(token)), status=status, version=token.version)
