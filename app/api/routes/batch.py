"""Reveal many tokens in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from app import errors
from app.api.answers import json_bytes, revealed_answer
from app.api.authentication import AuthenticatedCaller, Revealer
from app.api.dependencies import Events, Vault
from app.api.direct_route import DirectRoute
from app.api.openapi import BODY_ERRORS, PROVIDER_ERRORS, STORE_ERRORS, extra, responses
from app.api.problems import problem_of
from app.api.refusal_events import record_refused_item
from app.api.request_body import strict_body
from app.api.schemas.answers import MAXIMUM_ANSWER_BYTES, BatchGetResponse
from app.api.schemas.requests import BatchGetRequest
from app.callers.service_keys import Scope
from app.errors import AnswerTooLarge, Forbidden, VaultError
from app.tokens.models import RevealedToken, TokenId
from app.tokens.reveals import RevealOptions

_log = structlog.get_logger("app.requests")
router = APIRouter(prefix="/v1/tokens", tags=["tokens"], route_class=DirectRoute)

Body = Annotated[BatchGetRequest, Depends(strict_body(BatchGetRequest))]


@router.post(
    "/batch-get",
    summary="Reveal up to 100 tokens",
    response_model=BatchGetResponse,
    responses=responses(*BODY_ERRORS, *STORE_ERRORS, *PROVIDER_ERRORS, errors.KeyUnavailable),
    openapi_extra=extra(body=BatchGetRequest),
)
async def batch_get_tokens(
    authenticated: Revealer, body: Body, vault: Vault, events: Events, request: Request
) -> Response:
    """Return a token or a problem for each token id, in order. Needs `tokens:reveal`.

    Tokens beyond 1 MiB get the problem `answer_too_large`: ask for them in another call. If all tokens have the same
    retryable problem, it is the answer.
    """
    request.state.admitted.charge(len(body.tokens))
    include_refresh = body.include is not None
    if include_refresh:
        authenticated.require_scope(Scope.REVEAL_REFRESH)
    requested = [one.to_token_id() for one in body.tokens]
    for token_id in requested:
        try:
            authenticated.require_user(token_id.user_id)
        except Forbidden:
            request.state.refused_token = token_id
            raise
    allowed = [token_id for token_id in requested if authenticated.key.may_use(token_id.provider)]
    may_reveal = set(allowed)
    answer = _Answer(authenticated.caller.request_id, include_refresh=include_refresh)
    revealed = await vault.reveal_many(
        allowed,
        caller=authenticated.caller,
        options=RevealOptions(include_refresh=include_refresh, min_ttl_seconds=body.min_ttl),
        accept=answer.add,
    )
    failures = {id_: one for id_, one in zip(allowed, revealed, strict=True) if isinstance(one, VaultError)}
    refused = {token_id: _refused(authenticated, token_id) for token_id in requested if token_id not in may_reveal}
    await asyncio.gather(
        *(record_refused_item(events, token_id, authenticated.caller, error) for token_id, error in refused.items())
    )
    _raise_common_failure([*failures.values(), *refused.values()], requested)
    return answer.response(requested, failures | refused)


class _Answer:
    """The answer to a batch: each token is serialised when it is revealed, as long as there is room."""

    def __init__(self, request_id: str, *, include_refresh: bool) -> None:
        self._request_id = request_id
        self._include_refresh = include_refresh
        self._items: dict[TokenId, bytes] = {}
        self._room_bytes = MAXIMUM_ANSWER_BYTES

    def add(self, revealed: RevealedToken) -> None:
        """Add a token, or raise `AnswerTooLarge`."""
        item = json_bytes({"token": revealed_answer(revealed, include_refresh=self._include_refresh)})
        if len(item) > self._room_bytes:
            raise AnswerTooLarge("the other tokens fill the answer: ask for this one in another call")
        self._room_bytes -= len(item)
        self._items[revealed.token.token_id] = item

    def response(self, requested: Sequence[TokenId], failures: Mapping[TokenId, VaultError]) -> Response:
        """Return the answer: of each requested token the failure, if it has one, or the token."""
        items = (self._problem(failures[one]) if one in failures else self._items[one] for one in requested)
        return Response(b'{"results":[%b]}' % b",".join(items), media_type="application/json")

    def _problem(self, error: VaultError) -> bytes:
        return json_bytes({"problem": problem_of(error, self._request_id)})


def _raise_common_failure(failures: Sequence[VaultError], requested: Sequence[TokenId]) -> None:
    """Raise the retryable error that every token has, so that generic clients and balancers see it."""
    if len(failures) == len(requested) and failures[0].retryable and len({type(error) for error in failures}) == 1:
        raise max(failures, key=lambda error: error.retry_after_seconds)


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
