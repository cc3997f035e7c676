"""The tokens of all users, without secrets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.datastructures import QueryParams
from starlette.responses import Response

from app.api.answers import json_bytes, json_response, token_answer, unreadable_answer
from app.api.authentication import AuthenticatedCaller, Reader
from app.api.cursors import cursor_after, row_id_of
from app.api.dependencies import Vault, known_parameters
from app.api.direct_route import DirectRoute
from app.api.openapi import LIST_PARAMETERS, STORE_ERRORS, extra, responses
from app.api.schemas.answers import DEFAULT_PAGE, MAXIMUM_ANSWER_BYTES, MAXIMUM_PAGE, TokenPage
from app.api.schemas.fields import parse_time
from app.errors import InvalidRequest
from app.tokens.models import StoredToken, TokenFilter, TokenRow, TokenStatus, parse_slug
from app.tokens.vault import TokenVault

_PARAMETERS: Final = frozenset({"provider", "status", "expires_before", "limit", "cursor"})
_LIMIT: Final = re.compile(r"[0-9]{1,3}", re.ASCII)
router = APIRouter(prefix="/v1/tokens", tags=["tokens"], route_class=DirectRoute)


@router.get(
    "",
    summary="List the tokens of all users",
    response_model=TokenPage,
    responses=responses(*STORE_ERRORS),
    openapi_extra=extra(*LIST_PARAMETERS),
)
async def list_all_tokens(authenticated: Reader, vault: Vault, request: Request) -> Response:
    """List tokens of the providers that the key may use, without secrets, a page at a time. Needs `tokens:read`.

    Repeat the request with `cursor` set to `next_cursor` until that is null. Pages are ordered by the row's id, which
    never changes: a token that exists and matches all the while is on exactly one page, whatever changes meanwhile.
    """
    parameters = known_parameters(request, _PARAMETERS)
    cursor = parameters.get("cursor")
    rows = await vault.list_all(
        _filter(parameters, authenticated),
        caller=authenticated.caller,
        after=None if cursor is None else row_id_of(cursor),
        limit=_limit(parameters.get("limit")),
    )
    return _page(rows, vault, authenticated.caller.request_id)


def _filter(parameters: QueryParams, authenticated: AuthenticatedCaller) -> TokenFilter:
    provider, status, before = (parameters.get(name) for name in ("provider", "status", "expires_before"))
    if provider is not None:
        authenticated.require_provider(parse_slug("provider", provider))
    try:
        wanted = None if status is None else TokenStatus(status)
    except ValueError:
        raise InvalidRequest.of_field("status", f"status must be one of {', '.join(TokenStatus)}") from None
    return TokenFilter(
        providers=authenticated.key.providers if provider is None else frozenset({provider}),
        status=wanted,
        expires_before=None if before is None else parse_time("expires_before", before),
    )


def _limit(text: str | None) -> int:
    if text is None:
        return DEFAULT_PAGE
    if not _LIMIT.fullmatch(text) or not 1 <= int(text) <= MAXIMUM_PAGE:
        raise InvalidRequest.of_field("limit", f"limit must be 1 to {MAXIMUM_PAGE}")
    return int(text)


def _page(rows: Sequence[TokenRow], vault: TokenVault, request_id: str) -> Response:
    """Return the page, cut at the size of an answer; what does not fit is on the next one."""
    answer: dict[str, Any] = {"tokens": []}
    last, room = None, MAXIMUM_ANSWER_BYTES
    for row in rows:
        if isinstance(row, StoredToken):
            place, shown = "tokens", token_answer(row, refreshable=vault.is_refreshable(row))
        else:
            place, shown = "unreadable", unreadable_answer(row, request_id)
        room -= len(json_bytes(shown))
        if room < 0 and last is not None:
            break
        answer.setdefault(place, []).append(shown)
        last = row
    return json_response({**answer, "next_cursor": None if last is None else cursor_after(last.id)})
