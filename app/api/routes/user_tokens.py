"""All tokens of one user."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from app.api.authentication import Deleter, Reader
from app.api.dependencies import UserIdPath, Vault
from app.api.openapi import STORE, answers
from app.api.schemas import Erased, Token, TokenList, json_answer, token_fields

router = APIRouter(prefix="/v1/users/{user_id}/tokens", tags=["users"])


@router.get("", summary="List a user's tokens", response_model=TokenList, responses=answers(*STORE))
async def list_tokens(caller: Reader, user_id: UserIdPath, vault: Vault) -> Response:
    """List without any secret, those of the key's providers. Needs `tokens:read`."""
    tokens = await vault.list_for_user(user_id, caller=caller.caller)
    visible = [Token(**token_fields(token)) for token in tokens if caller.key.may_use(token.token_id.provider)]
    return json_answer(TokenList(tokens=visible))


@router.delete("", summary="Erase a user", response_model=Erased, responses=answers(*STORE))
async def erase(caller: Deleter, user_id: UserIdPath, vault: Vault) -> Response:
    """Delete all of a user's tokens. Needs `tokens:delete` and a key that is not limited to some providers."""
    caller.require_every_provider()
    return json_answer(Erased(deleted=await vault.delete_for_user(user_id, caller=caller.caller)))
