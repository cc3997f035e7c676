"""One token of one user: store, reveal, change, rotate, delete."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from app import errors
from app.api.answers import json_answer
from app.api.authentication import Deleter, Revealer, Writer
from app.api.body import strict_body
from app.api.conditions import ChangeCondition, StoreCondition
from app.api.dependencies import TokenIdPath, Vault
from app.api.openapi import BODY, OPEN, SEAL, STORE, answers, request_body
from app.api.schemas import PatchTokenRequest, Revealed, StoreTokenRequest, Token, revealed_body, token_fields
from app.callers.service_key import Scope
from app.tokens.models import StoredToken

router = APIRouter(prefix="/v1/users/{user_id}/tokens/{provider}", tags=["tokens"])

StoreBody = Annotated[StoreTokenRequest, Depends(strict_body(StoreTokenRequest))]
PatchBody = Annotated[PatchTokenRequest, Depends(strict_body(PatchTokenRequest))]
Include = Annotated[
    Literal["refresh_token"] | None, Query(description="Also reveal the refresh token; needs tokens:reveal_refresh.")
]


@router.put(
    "",
    summary="Store a token",
    response_model=Token,
    responses=answers(*BODY, *STORE, *SEAL, errors.VersionConflict, etag=True, created=True),
    openapi_extra=request_body(StoreTokenRequest),
)
async def store(
    caller: Writer, token_id: TokenIdPath, condition: StoreCondition, body: StoreBody, vault: Vault
) -> Response:
    """Create the token, or replace it whole: what is not given is empty afterwards. Needs `tokens:write`."""
    result = await vault.store(token_id, body.to_input(), caller=caller.caller, precondition=condition)
    return _answer(result.token, status=201 if result.created else 200)


@router.get(
    "",
    summary="Reveal a token",
    response_model=Revealed,
    responses=answers(*STORE, *OPEN, errors.TokenNotFound, errors.TokenInactive, etag=True),
)
async def reveal(caller: Revealer, token_id: TokenIdPath, vault: Vault, include: Include = None) -> Response:
    """Decrypt the access token. Needs `tokens:reveal`."""
    if include is not None:
        caller.require_scope(Scope.REVEAL_REFRESH)
    revealed = await vault.reveal(token_id, caller=caller.caller, include_refresh=include is not None)
    body = revealed_body(revealed, include_refresh=include is not None)
    return json_answer(body, version=revealed.token.version)


@router.patch(
    "",
    summary="Change a token's status or metadata",
    response_model=Token,
    responses=answers(*BODY, *STORE, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=request_body(PatchTokenRequest),
)
async def patch(
    caller: Writer, token_id: TokenIdPath, condition: ChangeCondition, body: PatchBody, vault: Vault
) -> Response:
    """Change what is no secret. Needs `tokens:write`."""
    token = await vault.patch(token_id, body.to_patch(), caller=caller.caller, precondition=condition)
    return _answer(token)


@router.post(
    "/rotate",
    summary="Rotate a token",
    response_model=Token,
    responses=answers(*BODY, *STORE, *OPEN, errors.TokenNotFound, errors.VersionConflict, etag=True),
    openapi_extra=request_body(StoreTokenRequest),
)
async def rotate(
    caller: Writer, token_id: TokenIdPath, condition: ChangeCondition, body: StoreBody, vault: Vault
) -> Response:
    """Replace the secret of an existing token; what is not given stays, the status too. Needs `tokens:write`."""
    token = await vault.rotate(token_id, body.to_input(), caller=caller.caller, precondition=condition)
    return _answer(token)


@router.delete(
    "",
    summary="Delete a token",
    status_code=204,
    responses=answers(*STORE, errors.TokenNotFound, errors.VersionConflict),
)
async def delete(caller: Deleter, token_id: TokenIdPath, condition: ChangeCondition, vault: Vault) -> Response:
    """Delete the token for good. Needs `tokens:delete`."""
    await vault.delete(token_id, caller=caller.caller, precondition=condition)
    return Response(status_code=204)


def _answer(token: StoredToken, *, status: int = 200) -> Response:
    return json_answer(Token(**token_fields(token)), status=status, version=token.version)
