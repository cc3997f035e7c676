"""Deletions of rows that other tables may reference by a foreign key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from app.errors import InvalidRequest, TokenReferenced
from app.tokens.models import Deletions, TokenRow

DeleteRows = Callable[[Sequence[TokenRow]], Awaitable[int]]
# foreign_key_violation, and restrict_violation of a key with ON DELETE RESTRICT since PostgreSQL 18
FOREIGN_KEY_VIOLATIONS: Final = frozenset({"23503", "23001"})


def unknown_user() -> InvalidRequest:
    """Return the error of a row whose user does not exist: what a foreign key means, except in a deletion."""
    return InvalidRequest.of_field("user_id", "the user does not exist")


@contextmanager
def deleting() -> Iterator[None]:
    """Raise `TokenReferenced` for a foreign key: that of a deletion is another table's."""
    try:
        yield
    except InvalidRequest:
        raise TokenReferenced("another table references the row of this token, so it was not deleted") from None


async def delete_in_chunks(rows: Sequence[TokenRow], delete: DeleteRows, *, chunk_rows: int) -> Deletions:
    """Delete the rows that no other table references, with at most `chunk_rows` in a statement."""
    done = Deletions(0)
    for at in range(0, len(rows), chunk_rows):
        done = _sum(done, await _delete_unreferenced(rows[at : at + chunk_rows], delete))
    return done


async def _delete_unreferenced(rows: Sequence[TokenRow], delete: DeleteRows) -> Deletions:
    """Delete rows in one statement; if one of them is referenced, in two, and so on down to that row alone."""
    try:
        return Deletions(await delete(rows))
    except TokenReferenced:
        if len(rows) == 1:
            return Deletions(0, (rows[0],))
    middle = len(rows) // 2
    first = await _delete_unreferenced(rows[:middle], delete)
    return _sum(first, await _delete_unreferenced(rows[middle:], delete))


def _sum(one: Deletions, other: Deletions) -> Deletions:
    return Deletions(one.deleted + other.deleted, (*one.referenced, *other.referenced))
