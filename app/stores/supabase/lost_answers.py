"""Lost answers: the outcome of a write that the store did not answer, decided from the row that is read back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from app.errors import StoreError
from app.stores.rows import changed_columns
from app.stores.supabase.postgrest import UnknownOutcomeError
from app.tokens.models import StoredToken, TokenRow

ReadBack = Callable[[str], Awaitable[TokenRow | None]]

_SECRETS: Final = frozenset({"access_token", "refresh_token"})


async def confirm_write(
    written: StoredToken, columns: set[str], unknown: UnknownOutcomeError, *, read_back: ReadBack
) -> StoredToken:
    """Return the row if it holds what was written; otherwise raise the `StoreError` of the lost answer.

    No two encryptions give the same ciphertext, so a written ciphertext and the version identify the write. If no
    secret was written, every written column must match.
    """
    row = await _row(written.id, unknown, read_back)
    if isinstance(row, StoredToken) and row.version == written.version:
        differing = columns & changed_columns(row, written).keys()
        if not differing & (_SECRETS if columns & _SECRETS else columns):
            return row
    raise unknown.store_error from None


async def confirm_delete(token: TokenRow, unknown: UnknownOutcomeError, *, read_back: ReadBack) -> bool:
    """Return `True` if the row is gone; otherwise raise the `StoreError` of the lost answer."""
    if await _row(token.id, unknown, read_back) is None:
        return True
    raise unknown.store_error from None


async def _row(row_id: str, unknown: UnknownOutcomeError, read_back: ReadBack) -> TokenRow | None:
    try:
        return await read_back(row_id)
    except StoreError:
        raise unknown.store_error from None
