"""Audit events of requests that are refused before the vault sees them: no key, no permission, or invalid."""

from __future__ import annotations

from typing import Final

from fastapi import Request

from app.api.authentication import client_address
from app.errors import InvalidRequest, VaultError
from app.tokens.events import Operation, TokenEvent, TokenEvents
from app.tokens.models import DEFAULT_SERVICE_TYPE, Caller, TokenId, parse_user_id

OPERATIONS: Final = {
    "store_token": Operation.STORE,
    "reveal_token": Operation.REVEAL,
    "refresh_rejected_token": Operation.REFRESH,
    "exchange_code": Operation.EXCHANGE,
    "patch_token": Operation.PATCH,
    "rotate_token": Operation.ROTATE,
    "rewrap_token": Operation.REWRAP,
    "delete_token": Operation.DELETE,
    "list_user_tokens": Operation.LIST,
    "list_all_tokens": Operation.LIST,
    "erase_user": Operation.ERASE_USER,
    "batch_get_tokens": Operation.REVEAL,
    "exchange_token": Operation.REVEAL,
}
"""Operation by name of the route; other routes touch no token and leave no event."""


async def record_refused_request(request: Request, error: VaultError) -> None:
    """Record the operation, token and caller of a refused request, and nothing else that it contains."""
    operation = OPERATIONS.get(getattr(request.scope.get("route"), "name", ""))
    if operation is not None:
        user_id, token_id = _target_of(request)
        # without a valid service key nothing that the caller says about itself is recorded
        caller = getattr(request.state, "caller", None) or Caller(
            "", request.state.request_id, address=client_address(request)
        )
        await request.state.events.record_refusal(_refusal(operation, user_id, token_id, caller, error))


async def record_refused_item(events: TokenEvents, token_id: TokenId, caller: Caller, error: VaultError) -> None:
    """Record that the caller may not reveal one token of a batch."""
    await events.record_refusal(_refusal(Operation.REVEAL, token_id.user_id, token_id, caller, error))


def _refusal(
    operation: Operation, user_id: str | None, token_id: TokenId | None, caller: Caller, error: VaultError
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


def _target_of(request: Request) -> tuple[str | None, TokenId | None]:
    """Return user and token if path and query are valid; text of any other form may be a secret.

    Without a token in its path, return the one that its route has found to be refused.
    """
    refused: TokenId | None = getattr(request.state, "refused_token", None)
    if refused is not None:
        return refused.user_id, refused
    path = request.path_params
    try:
        user_id = parse_user_id(path.get("user_id", ""))
    except InvalidRequest:
        return None, None
    service_type = request.query_params.get("service_type", DEFAULT_SERVICE_TYPE)
    try:
        return user_id, TokenId.parse(user_id, path.get("provider", ""), service_type)
    except InvalidRequest:
        return user_id, None
