"""The successor of a spent refresh token, for a row that another writer has changed while the provider was asked."""

from __future__ import annotations

from datetime import datetime

from app.errors import RefreshInProgress
from app.tokens import transitions
from app.tokens.cipher import Binding, TokenCipher
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository


async def keep_successor(
    tokens: TokenRepository, cipher: TokenCipher, claimed: StoredToken, after: StoredToken, *, now: datetime
) -> None:
    """Put the refresh token of `after` in place of that of `claimed`, which is spent, if the row still has that one.

    A rotation without a refresh token keeps the one that a refresh has just spent, and a store may bring it again. The
    access token and all else stay as they were written. Raises `RefreshInProgress` while another refresh holds the row
    with the spent token: if that one fails, the successor is still wanted. Raises a `StoreError` or an
    `EncryptionError`.
    """
    spent, successor = await cipher.open_refresh(claimed), await cipher.open_refresh(after)
    while successor != spent:
        row = (await tokens.read_back([claimed.id])).get(claimed.id)
        if not isinstance(row, StoredToken) or row.encryption_scheme is None:
            return
        secrets = await cipher.open(row)
        if secrets.refresh != spent:
            return
        if row.refresh_state.holder is not None:
            raise RefreshInProgress("another refresh has taken this token over")
        sealed = await cipher.seal(Binding.of(row), secrets.access, successor)
        expires_at = after.refresh_token_expires_at
        replaced = transitions.refresh_token_replaced(row, sealed, expires_at=expires_at, now=now)
        if await tokens.replace(row, replaced) is not None:
            return
