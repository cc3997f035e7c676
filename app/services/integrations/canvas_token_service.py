"""Canvas tokens for PulsePlan's scripts: `get_canvas_token_service()`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import cache
from typing import Any

from pydantic import SecretStr

from app.errors import TokenInactive, TokenNotFound
from app.tokens.models import Caller, StoredToken, TokenId, TokenInput, parse_base_url
from app.tokens.provider_rules import CANVAS
from app.tokens.vault import TokenVault


class CanvasTokenService:
    """Store and retrieve Canvas tokens.

    Each call enters `open_vault`, because a script may run each call in another event loop.
    """

    def __init__(self, *, open_vault: Callable[[], AbstractAsyncContextManager[TokenVault]], caller: Caller) -> None:
        self._open_vault = open_vault
        self._caller = caller

    async def store_canvas_token(self, user_id: str, canvas_url: str, api_token: str) -> dict[str, Any]:
        """Store a manual token; return `user_id`, `base_url` and `status`.

        Raises `InvalidRequest` if the URL is not https or the token is empty, and the errors of `TokenVault.store`.
        """
        token_id = TokenId.parse(user_id, CANVAS)
        given = TokenInput(access_token=SecretStr(api_token), base_url=parse_base_url(canvas_url))
        async with self._open_vault() as vault:
            result = await vault.store(token_id, given, caller=self._caller)
        return {"user_id": user_id, "base_url": result.token.valid_base_url, "status": result.token.status.value}

    async def retrieve_canvas_token(self, user_id: str) -> dict[str, Any] | None:
        """Return `api_token`, `base_url`, `status` and `user_id`, or `None` if the user has no token.

        `api_token` is `None` if `status` is not `ok`. Raises the errors of `TokenVault.reveal`, and
        `AnswerTooLarge` if the user's tokens are too many to list.
        """
        token_id = TokenId.parse(user_id, CANVAS)
        async with self._open_vault() as vault:
            try:
                revealed = await vault.reveal(token_id, caller=self._caller)
            except TokenNotFound:
                return None
            except TokenInactive:
                tokens = await vault.list_for_user(user_id, caller=self._caller)
                token = next((one for one in tokens if isinstance(one, StoredToken) and one.token_id == token_id), None)
                if token is None:
                    return None
                secret = None
            else:
                token, secret = revealed.token, revealed.access_token.get_secret_value()
        return {"api_token": secret, "base_url": token.valid_base_url, "status": token.status.value, "user_id": user_id}


@cache
def get_canvas_token_service() -> CanvasTokenService:
    """Return the service, built from the environment on the first call. For scripts only."""
    from app.composition import open_vault  # noqa: PLC0415  importing this module does nothing
    from app.config.settings import load_settings  # noqa: PLC0415  importing this module does nothing

    settings = load_settings()
    return CanvasTokenService(open_vault=lambda: open_vault(settings), caller=Caller(service="script"))
