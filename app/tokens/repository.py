"""The repository Protocol that every store implements."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Final, Protocol

from app.errors import StoreMisconfigured
from app.tokens.census import CensusRow
from app.tokens.due_tokens import DuePage, DuePosition, DueTokens
from app.tokens.models import Deletions, Rewrap, StoredToken, TokenFilter, TokenId, TokenRow

MAXIMUM_LISTED: Final = 500  # tokens of one user, who usually has a few


class TokenRepository(Protocol):
    """Rows of `oauth_tokens`. A store sees ciphertexts only.

    Every write is one conditional statement: no lock, no transaction across calls, no session state. `None` or
    `False` means that the condition did not hold and nothing was written; a write that has returned is durable. Every
    method raises a `StoreError` if the store fails, and never reports an unknown outcome as success.

    A row that does not decode is returned as an `UnreadableRow`, so that it fails no read of others.
    """

    async def check(self) -> None:
        """Raise unless the table exists, has every column and shows its rows; the error names what is missing.

        Raises `WritesUnavailable` if all of that holds and the store is known to take no writes.
        """
        ...

    async def get(self, token_id: TokenId) -> TokenRow | None: ...

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, TokenRow]:
        """Return the tokens that exist among up to 100 ids."""
        ...

    async def list_for_user(self, user_id: str, *, limit: int = MAXIMUM_LISTED + 1) -> list[TokenRow]:
        """Return a user's tokens, ordered by provider and service type; of more than `limit` any `limit`.

        More rows than `MAXIMUM_LISTED` are not all of the user's for sure: the caller must not take them for all.
        """
        ...

    async def find(self, wanted: TokenFilter, *, after: str | None, limit: int) -> list[TokenRow]:
        """Return tokens of all users whose id is above `after`, ordered by id, so that no change moves a row.

        A page may hold fewer than `limit` rows; only an empty page is the end. A row that does not decode has the
        status that its columns show. Raises `InvalidRequest` if no row can have the id `after`.
        """
        ...

    async def insert(self, token: StoredToken) -> StoredToken | None:
        """Write a new row and return it as stored; `None` if its token id is taken."""
        ...

    async def replace(self, before: TokenRow, after: StoredToken) -> StoredToken | None:
        """Write the columns that differ if the row still has the version and scheme of `before`.

        Returns the row as stored. The condition includes the scheme because a rewrap changes it but not the version,
        and, if the access token differs, the generation because a claim raises that alone.
        Of an unreadable row every column is written, and the version alone is the condition.
        """
        ...

    async def delete(self, row: TokenRow) -> bool:
        """Delete the row if it still has this version; return whether this call deleted it.

        A row that is gone after a lost answer proves nothing, so the call raises then. Raises `TokenReferenced`.
        """
        ...

    async def delete_many(self, rows: Sequence[TokenRow]) -> Deletions:
        """Delete the rows that still have these versions and that no other table references."""
        ...

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        """Count the rows by how they are encrypted. Reads every row, which takes minutes on a large table."""
        ...

    async def schemes(self) -> list[str | None]:
        """Return the distinct schemes, with `None` if some row has none. Fast at any number of rows."""
        ...

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[TokenRow]:
        """Return rows with exactly this scheme whose id is above `after`, ordered by id.

        A page may hold fewer than `limit` rows, because stores cap their answers; only an empty page is the end.
        """
        ...

    async def read_back(self, row_ids: Sequence[str]) -> Mapping[str, TokenRow]:
        """Return those of up to 100 rows that exist, by row id, after a write whose answer was lost.

        Durable: what the answer shows, a missing row too, survives a failover, unlike that of any other read. So does
        everything that earlier reads have shown, unless there was a failover in between.
        """
        ...

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        """Write the new ciphertexts of rows that are unchanged since they were read; return the ids written.

        A row must still have the version, the scheme and both ciphertexts of `before`. Only the secrets, the scheme
        and the metadata about the encryption change. After a `StoreError` some rows may have been written; repeating
        the call is safe.
        """
        ...

    async def claim_refresh(self, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
        """Take the lease for a refresh of this token, `holder` being a new UUID; return whether it was taken.

        The row must still have the version, scheme, generation and holder of `token`, and nobody's lease may be alive
        by the store's clock. Neither the version nor any other column changes. After a `StoreError` the lease may have
        been taken: `get` shows its holder.
        """
        ...

    async def settle_refresh(self, claimed: StoredToken, after: StoredToken) -> bool:
        """Write how a claimed row differs after its refresh, and end the lease; return whether that was done.

        The row must still have the holder and generation of `claimed`; it may have another version. A version that is
        higher in `after` is one higher than the row's, and the caller's metadata stays. After a `StoreError` it may
        have been done; repeating the call is safe.
        """
        ...

    async def due_for_refresh(self, due: DueTokens, *, after: DuePosition | None, limit: int) -> DuePage:
        """Return up to `limit` due tokens in the order of their time and id, those behind `after` if it is given."""
        ...

    async def close(self) -> None: ...


async def find_token(tokens: TokenRepository, token_id: TokenId) -> TokenRow | None:
    """Read the row, and check its token id, because a ciphertext opens for the id that the row names."""
    token = await tokens.get(token_id)
    if token is not None and token.token_id != token_id:
        raise StoreMisconfigured("the store returned another token than the requested one")
    return token


async def pages(tokens: TokenRepository, scheme: str | None, *, rows: int) -> AsyncIterator[list[TokenRow]]:
    """Yield every row with exactly this scheme, in pages of at most `rows`; raises a `StoreError`."""
    after = None
    while page := await tokens.page(scheme, after=after, limit=rows):
        yield page
        after = page[-1].id
