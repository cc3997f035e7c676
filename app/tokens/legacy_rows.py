"""Rows in PulsePlan's formats, whose ciphertexts are bound to their user and to neither provider nor column.

A ciphertext that was moved here from another row of the same user decrypts like the row's own, and a rewrap would bind
the wrong secret to the row for good. A moved ciphertext cannot be recognised; one that was copied stands in two rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence

from app.errors import IntegrityError
from app.security.formats import legacy_spelling
from app.tokens.models import StoredToken, UnreadableRow
from app.tokens.repository import TokenRepository


def is_legacy(row: StoredToken) -> bool:
    """Return whether a secret of the row is in one of PulsePlan's formats, whatever the row's scheme is."""
    return bool(_legacy_spellings(row))


async def require_own_secrets(tokens: TokenRepository, row: StoredToken) -> None:
    """Raise `IntegrityError` if a legacy ciphertext of the row stands in another row too."""
    for _, error in (await find_copies([row], tokens.list_for_user)).values():
        raise error


async def find_copies(
    rows: Iterable[StoredToken], list_for_user: Callable[[str], Awaitable[Sequence[StoredToken | UnreadableRow]]]
) -> dict[str, tuple[StoredToken, IntegrityError]]:
    """Return, by row id, the legacy rows with a ciphertext that stands in another row too.

    A legacy ciphertext opens for one user, so rows are compared with those of their user alone, and one user at a time:
    memory holds the rows of one user, however large the table is.
    """
    of_user: defaultdict[str, list[StoredToken]] = defaultdict(list)
    for row in filter(is_legacy, rows):
        of_user[row.token_id.user_id].append(row)
    copies = {}
    for user_id, legacy in of_user.items():
        rows_with: defaultdict[str, set[str]] = defaultdict(set)
        for found in await list_for_user(user_id):
            for spelling in _legacy_spellings(found) if isinstance(found, StoredToken) else ():
                rows_with[spelling].add(found.id)
        for row in legacy:
            if any(rows_with[spelling] - {row.id} for spelling in _legacy_spellings(row)):
                copies[row.id] = (row, _stands_twice())
    return copies


def _legacy_spellings(row: StoredToken) -> set[str]:
    ciphertexts = (row.access_ciphertext, row.refresh_ciphertext)
    return {spelling for text in ciphertexts if text is not None and (spelling := legacy_spelling(text)) is not None}


def _stands_twice() -> IntegrityError:
    return IntegrityError(
        "another row of this user holds the same PulsePlan ciphertext, and nothing shows which row it was made for"
    )
