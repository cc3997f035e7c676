"""Canvas tokens for PulsePlan's scripts: `get_canvas_token_service()`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any

from pydantic import SecretStr

from app.errors import TokenInactive, TokenNotFound, VersionConflict
from app.tokens.models import Caller, Precondition, StoredToken, TokenId, TokenInput, parse_base_url
from app.tokens.provider_rules import CANVAS
from app.tokens.vault import TokenVault


class CanvasTokenService:
    """Store and retrieve Canvas tokens.

    PulsePlan's rows have the service type `canvas`. A user who has such a token keeps it; a new one gets `default`.
    Each call enters `open_vault`, because a script may run each call in another event loop.
    """

    def __init__(self, *, open_vault: Callable[[], AbstractAsyncContextManager[TokenVault]], caller: Caller) -> None:
        self._open_vault = open_vault
        self._caller = caller

    async def store_canvas_token(self, user_id: str, canvas_url: str, api_token: str) -> dict[str, Any]:
        """Store a manual token; return `user_id`, `base_url` and `status`.

        Raises `InvalidRequest` if the URL is not https or the token is empty, and the errors of `TokenVault.store`.
        """
        given = TokenInput(access_token=SecretStr(api_token), base_url=parse_base_url(canvas_url))
        pulseplans, ours = _token_ids(user_id)
        async with self._open_vault() as vault:
            try:
                exists = Precondition(must_exist=True)
                result = await vault.store(pulseplans, given, caller=self._caller, precondition=exists)
            except VersionConflict:
                result = await vault.store(ours, given, caller=self._caller)
        return {"user_id": user_id, "base_url": result.token.valid_base_url, "status": result.token.status.value}

    async def retrieve_canvas_token(self, user_id: str) -> dict[str, Any] | None:
        """Return `api_token`, `base_url`, `status` and `user_id`, or `None` if the user has no token.

        `api_token` is `None` if `status` is not `ok`. Raises the errors of `TokenVault.reveal`, and
        `AnswerTooLarge` if the user's tokens are too many to list.
        """
        async with self._open_vault() as vault:
            for token_id in _token_ids(user_id):
                found = await self._retrieve(vault, token_id)
                if found is not None:
                    token, secret = found
                    url, status = token.valid_base_url, token.status.value
                    return {"api_token": secret, "base_url": url, "status": status, "user_id": user_id}
        return None

    async def _retrieve(self, vault: TokenVault, token_id: TokenId) -> tuple[StoredToken, str | None] | None:
        try:
            revealed = await vault.reveal(token_id, caller=self._caller)
        except TokenNotFound:
            return None
        except TokenInactive:
            tokens = await vault.list_for_user(token_id.user_id, caller=self._caller)
            token = next((one for one in tokens if isinstance(one, StoredToken) and one.token_id == token_id), None)
            return None if token is None else (token, None)
        return revealed.token, revealed.access_token.get_secret_value()


def _token_ids(user_id: str) -> tuple[TokenId, TokenId]:
    """Return the ids of PulsePlan's Canvas token and of the vault's."""
    return TokenId.parse(user_id, CANVAS, CANVAS), TokenId.parse(user_id, CANVAS)


@cache
def get_canvas_token_service() -> CanvasTokenService:
    """Return the service, built from the environment on the first call. For scripts only."""
    from app.composition.vault import open_vault  # noqa: PLC0415  importing this module does nothing
    from app.config.settings import load_settings  # noqa: PLC0415  importing this module does nothing

    settings = load_settings()
    return CanvasTokenService(open_vault=lambda: open_vault(settings), caller=Caller(service="script"))
