"""All tokens of one user: list, erase."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from app.api.answers import erasure_response, json_response, token_answer, unreadable_answer
from app.api.authentication import Deleter, Reader
from app.api.dependencies import Revoke, UserIdInPath, Vault, known_parameters, revoke_of
from app.api.direct_route import DirectRoute
from app.api.openapi import DECRYPT_ERRORS, PROVIDER_ERRORS, REVOKE, STORE_ERRORS, USER_ID, extra, responses
from app.api.schemas.answers import MAXIMUM_ANSWER_BYTES, Erased, TokenList
from app.errors import AnswerTooLarge, TokenInactive, TokenReferenced
from app.refresh.revocation import TokenRevocation
from app.tokens.models import StoredToken, UnreadableRow

_REVOKE_ALONE = frozenset({"revoke"})
router = APIRouter(prefix="/v1/users/{user_id}/tokens", tags=["users"], route_class=DirectRoute)


@router.get(
    "",
    summary="List a user's tokens",
    response_model=TokenList,
    responses=responses(*STORE_ERRORS, AnswerTooLarge),
    openapi_extra=extra(USER_ID),
)
async def list_user_tokens(authenticated: Reader, user_id: UserIdInPath, vault: Vault) -> Response:
    """List the user's tokens of the providers that the key may use, without secrets. Needs `tokens:read`.

    Tokens whose rows do not decode are in `unreadable`, each with its problem. A user with more than 500 tokens, or
    with more than 1 MiB of them, gets the problem `answer_too_large`.
    """
    rows = await vault.list_for_user(user_id, caller=authenticated.caller)
    visible = [row for row in rows if authenticated.key.may_use(row.token_id.provider)]
    tokens = [row for row in visible if isinstance(row, StoredToken)]
    answer = {"tokens": [token_answer(token, refreshable=vault.is_refreshable(token)) for token in tokens]}
    if len(answer["tokens"]) < len(visible):
        request_id = authenticated.caller.request_id
        answer["unreadable"] = [unreadable_answer(row, request_id) for row in visible if isinstance(row, UnreadableRow)]
    response = json_response(answer)
    if len(response.body) > MAXIMUM_ANSWER_BYTES:
        raise AnswerTooLarge("the user's tokens take more than 1 MiB, too much to list")
    return response


@router.delete(
    "",
    summary="Erase a user",
    response_model=Erased,
    responses=responses(*STORE_ERRORS, *DECRYPT_ERRORS, *PROVIDER_ERRORS, TokenInactive, TokenReferenced),
    openapi_extra=extra(USER_ID, REVOKE),
)
async def erase_user(authenticated: Deleter, user_id: UserIdInPath, vault: Vault, request: Request) -> Response:
    """Delete all of a user's tokens. Needs `tokens:delete` and a key that is not limited to some providers.

    With `revoke` each token is revoked first, and the answer has a receipt for each. If tokens had to be kept, the
    answer is the problem that prevented their deletion: its members `kept` and `deleted` say which ones, and how many
    were deleted.
    """
    authenticated.require_every_provider()
    caller, revoke = authenticated.caller, revoke_of(known_parameters(request, _REVOKE_ALONE))
    if revoke is None:
        erasure = await vault.delete_for_user(user_id, caller=caller)
        return erasure_response(erasure, caller.request_id, with_receipts=False)
    revocation: TokenRevocation = request.state.revocation
    erasure = await revocation.erase(user_id, required=revoke is Revoke.REQUIRED, caller=caller)
    return erasure_response(erasure, caller.request_id, with_receipts=True)
