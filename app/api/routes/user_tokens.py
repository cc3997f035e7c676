"""All tokens of one user: list, erase."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.api.authentication import Deleter, Reader
from app.api.dependencies import UserIdPath, Vault
from app.api.openapi import STORE_ERRORS, responses
from app.api.schemas import Erased, Token, TokenList, json_response

router = APIRouter(prefix="/v1/users/{user_id}/tokens", tags=["users"])


@router.get("", summary="List a user's tokens", response_model=TokenList, responses=responses(*STORE_ERRORS))
async def list_tokens(authenticated: Reader, user_id: UserIdPath, vault: Vault) -> Response:
    """List the user's tokens of the providers that the key may use, without secrets. Needs `tokens:read`."""
    tokens = await vault.list_for_user(user_id, caller=authenticated.caller)
    visible = [Token.of(token) for token in tokens if authenticated.key.may_use(token.token_id.provider)]
    return json_response(TokenList(tokens=visible))


@router.delete("", summary="Erase a user", response_model=Erased, responses=responses(*STORE_ERRORS))
async def erase(authenticated: Deleter, user_id: UserIdPath, vault: Vault) -> Response:
    """Delete all of a user's tokens. Needs `tokens:delete` and a key that is not limited to some providers."""
    authenticated.require_every_provider()
    return json_response(Erased(deleted=await vault.delete_for_user(user_id, caller=authenticated.caller)))
