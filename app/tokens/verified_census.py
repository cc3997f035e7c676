"""The verified census: the rows counted by what their ciphertexts say, whatever the rows claim."""

from __future__ import annotations

from collections import Counter
from typing import Final

from app.errors import MalformedCiphertext
from app.security.schemes import is_written, scheme_of
from app.tokens.census import UNKNOWN, CensusRow
from app.tokens.models import StoredToken, TokenRow
from app.tokens.repository import TokenRepository, pages

_PAGE_ROWS: Final = 1_000


async def verified_census(tokens: TokenRepository) -> list[CensusRow]:
    """Read every row and count by its scheme and the schemes of its ciphertexts; nothing is decrypted.

    Rows with a scheme that the vault does not write are counted together as `unknown`. Takes minutes on a large table.
    Rows whose scheme changes meanwhile may be counted twice or not at all.
    """
    counts: Counter[tuple[str | None, tuple[str, ...]]] = Counter()
    schemes = await tokens.schemes()
    strange = {scheme for scheme in schemes if scheme is not None and not is_written(scheme)}
    if strange:  # any text and any number of texts, so no row of these is read
        counted = sum(line.rows for line in await tokens.census() if line.scheme in strange)
        counts[UNKNOWN, (UNKNOWN,)] += counted
    for scheme in schemes:
        if scheme in strange:
            continue
        async for page in pages(tokens, scheme, rows=_PAGE_ROWS):
            counts.update((scheme, _schemes_of(row)) for row in page)
    return [CensusRow(scheme, schemes, rows) for (scheme, schemes), rows in counts.items()]


def _schemes_of(row: TokenRow) -> tuple[str, ...]:
    if not isinstance(row, StoredToken):  # its columns are no token, so its ciphertexts are not known
        return (UNKNOWN,)
    return tuple(sorted({_scheme_or_unknown(text) for text in (row.access_ciphertext, row.refresh_ciphertext) if text}))


def _scheme_or_unknown(ciphertext: str) -> str:
    try:
        return scheme_of(ciphertext)
    except MalformedCiphertext:
        return UNKNOWN
