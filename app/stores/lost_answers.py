"""Lost answers: the outcome of a write that the store did not answer, decided from the row that is read back.

A deletion leaves no row to decide from: a row that is gone may have been changed and deleted by another writer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from app.errors import StoreError
from app.stores.rows import changed_columns
from app.tokens.models import StoredToken, TokenRow

ReadBack = Callable[[Sequence[str]], Awaitable[Mapping[str, TokenRow]]]

_SECRETS: Final = frozenset({"access_token", "refresh_token"})


class UnknownOutcomeError(Exception):
    """A write may or may not have been committed. `store_error` is the error to raise if that stays unknown."""

    def __init__(self, store_error: StoreError) -> None:
        super().__init__()
        self.store_error = store_error


async def confirm_write(
    written: StoredToken, columns: set[str], unknown: UnknownOutcomeError, *, read_back: ReadBack
) -> StoredToken:
    """Return the row if it holds what was written; otherwise raise the `StoreError` of the lost answer.

    No two encryptions give the same ciphertext, so a written ciphertext and the version identify the write. If no
    secret was written, every written column must match.
    """
    try:
        row = (await read_back([written.id])).get(written.id)
    except StoreError:
        raise unknown.store_error from None
    if isinstance(row, StoredToken) and row.version == written.version:
        differing = columns & changed_columns(row, written).keys()
        if not differing & (_SECRETS if columns & _SECRETS else columns):
            return row
    raise unknown.store_error from None
