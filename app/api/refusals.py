"""The record of what is refused at the door: no key, no right, or a request that is not well-formed."""

from __future__ import annotations

import re
from typing import Final

from fastapi import Request

from app.api.authentication import PURPOSE_HEADER, is_purpose
from app.callers.service_keys import ServiceKey
from app.errors import VaultError
from app.tokens.events import Operation, TokenEvent, TokenEvents
from app.tokens.models import DEFAULT_SERVICE_TYPE, SLUG_PATTERN, UUID_PATTERN, Caller, TokenId

# By the routes' names. What is not here touches no token.
OPERATIONS: Final = {
    "store": Operation.STORE,
    "reveal": Operation.REVEAL,
    "patch": Operation.PATCH,
    "rotate": Operation.ROTATE,
    "rewrap": Operation.REWRAP,
    "delete": Operation.DELETE,
    "list_tokens": Operation.LIST,
    "erase": Operation.ERASE_USER,
    "batch_get": Operation.REVEAL,
}


async def record_refused_request(request: Request, error: VaultError) -> None:
    """Keep what the route would have done, to which token, and for whom; never what was sent."""
    operation = OPERATIONS.get(getattr(request.scope.get("route"), "name", ""))
    if operation is not None:
        user_id, token_id = _token_named_by(request)
        event = _refusal(operation, user_id, token_id, caller=_caller_of(request), error=error)
        await request.state.events.record_refusal(event)


async def record_refused_item(events: TokenEvents, token_id: TokenId, caller: Caller, error: VaultError) -> None:
    """Keep that one token of several was not for this caller."""
    await events.record_refusal(_refusal(Operation.REVEAL, token_id.user_id, token_id, caller=caller, error=error))


def _refusal(
    operation: Operation, user_id: str | None, token_id: TokenId | None, *, caller: Caller, error: VaultError
) -> TokenEvent:
    return TokenEvent(
        operation=operation,
        user_id=user_id,
        token_id=token_id,
        scheme=None,
        encryption_method=None,
        outcome=error.code,
        detail=error.detail,
        caller=caller,
    )


def _token_named_by(request: Request) -> tuple[str | None, TokenId | None]:
    """Return the user and the token where path and query have their form; else they may be anything, a secret too."""
    user_id, provider = request.path_params.get("user_id", ""), request.path_params.get("provider", "")
    if not re.fullmatch(UUID_PATTERN, user_id):
        return None, None
    user_id = user_id.lower()
    service_type = request.query_params.get("service_type", DEFAULT_SERVICE_TYPE)
    if not re.fullmatch(SLUG_PATTERN, provider) or not re.fullmatch(SLUG_PATTERN, service_type):
        return user_id, None
    return user_id, TokenId(user_id, provider, service_type)


def _caller_of(request: Request) -> Caller:
    """Return who presented a valid key; of anybody else only the address is known, and no more is believed."""
    key: ServiceKey | None = getattr(request.state, "key", None)
    address = request.client.host if request.client else None
    if key is None:
        return Caller("", request.state.request_id, address=address)
    purpose = request.headers.get(PURPOSE_HEADER)
    purpose = purpose if purpose is not None and is_purpose(purpose) else None
    return Caller(key.service, request.state.request_id, key.fingerprint, address, purpose)
