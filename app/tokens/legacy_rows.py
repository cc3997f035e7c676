"""Rows in PulsePlan's formats, whose ciphertexts are bound to their user and to neither provider nor column.

A ciphertext that was moved here from another row or column of the same user decrypts like the row's own, and a rewrap
would bind the wrong secret to its place for good. A moved ciphertext cannot be recognised; one that was copied stands
in two places.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

from app.errors import IntegrityError
from app.security.context import SecretField
from app.security.formats import legacy_spelling
from app.tokens.models import StoredToken, UnreadableRow
from app.tokens.provider_rules import CANVAS
from app.tokens.repository import MAXIMUM_LISTED, TokenRepository

_Place = tuple[str, SecretField]  # row id and column
_SAME_CIPHERTEXT: Final = "the same PulsePlan ciphertext, and nothing shows which place it was made for"
_TOO_MANY_ROWS: Final = (
    f"this user has more than {MAXIMUM_LISTED} tokens, too many to look for copies of the row's PulsePlan ciphertext"
)


def is_legacy(row: StoredToken) -> bool:
    """Return whether a secret of the row is in one of PulsePlan's formats, whatever the row's scheme is."""
    return bool(_legacy_spellings(row))


async def require_own_secrets(tokens: TokenRepository, row: StoredToken) -> None:
    """Raise `IntegrityError` if a legacy ciphertext of the row stands in another place too."""
    for _, error in (await find_copies([row], tokens.list_for_user)).values():
        raise error


async def find_copies(
    rows: Iterable[StoredToken], list_for_user: Callable[[str], Awaitable[Sequence[StoredToken | UnreadableRow]]]
) -> dict[str, tuple[StoredToken, IntegrityError]]:
    """Return, by row id, the legacy rows with a ciphertext that stands in another place too.

    A legacy ciphertext opens for one user, so rows are compared with those of their user alone, and one user at a time:
    memory holds the rows of one user, however large the table is.

    At Canvas one ciphertext in both columns is no copy: PulsePlan stored a token that a user made by hand as access and
    as refresh token.

    Of a user with more rows than a store lists, a copy could be among the others: every legacy row is then returned.
    """
    of_user: defaultdict[str, list[StoredToken]] = defaultdict(list)
    for row in filter(is_legacy, rows):
        of_user[row.token_id.user_id].append(row)
    copies: dict[str, tuple[StoredToken, IntegrityError]] = {}
    for user_id, legacy in of_user.items():
        places: defaultdict[str, set[_Place]] = defaultdict(set)
        listed = await list_for_user(user_id)
        if len(listed) > MAXIMUM_LISTED:
            copies |= {row.id: (row, IntegrityError(_TOO_MANY_ROWS)) for row in legacy}
            continue
        for found in listed:
            for place, spelling in _legacy_spellings(found) if isinstance(found, StoredToken) else ():
                places[spelling].add(place)
        for row in legacy:
            others = {other for place, spelling in _legacy_spellings(row) for other in places[spelling] - {place}}
            if any(row_id != row.id for row_id, _ in others):
                copies[row.id] = (row, IntegrityError(f"another row of this user holds {_SAME_CIPHERTEXT}"))
            elif others and row.token_id.provider != CANVAS:
                copies[row.id] = (row, IntegrityError(f"the row's other column holds {_SAME_CIPHERTEXT}"))
    return copies


def _legacy_spellings(row: StoredToken) -> list[tuple[_Place, str]]:
    ciphertexts = (
        (SecretField.ACCESS_TOKEN, row.access_ciphertext),
        (SecretField.REFRESH_TOKEN, row.refresh_ciphertext),
    )
    return [
        ((row.id, field), spelling)
        for field, text in ciphertexts
        if text is not None and (spelling := legacy_spelling(text)) is not None
    ]
