"""Reveal many tokens in one call."""

from __future__ import annotations

import asyncio
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app.api.authentication import AuthenticatedCaller, Revealer
from app.api.dependencies import Events, Vault
from app.api.openapi import BODY_ERRORS, STORE_ERRORS, extra, responses
from app.api.problems import Problem, problem_of
from app.api.refusal_events import record_refused_item
from app.api.request_body import strict_body
from app.api.schemas import BatchGetRequest, BatchGetResponse, BatchItem, Revealed, json_response
from app.callers.service_keys import Scope
from app.errors import Forbidden, VaultError
from app.tokens.models import RevealedToken, TokenId

_log = structlog.get_logger("app.requests")
router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

Body = Annotated[BatchGetRequest, Depends(strict_body(BatchGetRequest))]


@router.post(
    "/batch-get",
    summary="Reveal up to 100 tokens",
    response_model=BatchGetResponse,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS),
    openapi_extra=extra(body=BatchGetRequest),
)
async def batch_get(authenticated: Revealer, body: Body, vault: Vault, events: Events, request: Request) -> Response:
    """Return a token or a problem for each token id, in order. Needs `tokens:reveal`."""
    request.state.admitted.charge(len(body.tokens))
    include_refresh = body.include is not None
    if include_refresh:
        authenticated.require_scope(Scope.REVEAL_REFRESH)
    requested = [one.to_token_id() for one in body.tokens]
    allowed = [token_id for token_id in requested if authenticated.key.may_use(token_id.provider)]
    revealed = await vault.reveal_many(allowed, caller=authenticated.caller, include_refresh=include_refresh)
    results: dict[TokenId, RevealedToken | VaultError] = dict(zip(allowed, revealed, strict=True))
    refused = {token_id: _refused(authenticated, token_id) for token_id in requested if token_id not in results}
    await asyncio.gather(
        *(record_refused_item(events, token_id, authenticated.caller, error) for token_id, error in refused.items())
    )
    results |= refused
    items = [_item(results[token_id], authenticated, include_refresh=include_refresh) for token_id in requested]
    return json_response(BatchGetResponse(results=items))


def _item(
    result: RevealedToken | VaultError, authenticated: AuthenticatedCaller, *, include_refresh: bool
) -> BatchItem:
    if isinstance(result, RevealedToken):
        return BatchItem(token=Revealed.with_secrets(result, include_refresh=include_refresh))
    return BatchItem(problem=Problem(**problem_of(result, authenticated.caller.request_id)))


def _refused(authenticated: AuthenticatedCaller, token_id: TokenId) -> Forbidden:
    error = Forbidden(f"the service key may not use the provider {token_id.provider}")
    _log.warning(
        "request_refused",
        route="/v1/tokens/batch-get",
        user_id=token_id.user_id,
        provider=token_id.provider,
        outcome=error.code,
        reason=error.detail,
        service=authenticated.key.service,
        request_id=authenticated.caller.request_id,
    )
    return error
