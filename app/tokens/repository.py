"""What a store of tokens has to offer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from app.tokens.census import CensusRow
from app.tokens.models import Rewrap, StoredToken, TokenId, UnreadableRow


class TokenRepository(Protocol):
    """Rows of `oauth_tokens`. Storage sees ciphertexts only.

    Every write is one conditional statement: no lock, no transaction across calls, no session state. `None` or
    `False` means that the condition did not hold and nothing was written; a write that returns is durable. Every
    method raises a `StoreError` where the store fails, and never calls an unknown outcome a success.
    """

    async def check(self) -> None:
        """Prove that the table is there, with every column, and visible to us; say plainly what is missing."""
        ...

    async def get(self, token_id: TokenId) -> StoredToken | None: ...

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, StoredToken]:
        """Return those of up to 100 tokens that exist."""
        ...

    async def list_for_user(self, user_id: str) -> list[StoredToken]:
        """Return all of a user's tokens, ordered by provider and service type."""
        ...

    async def insert(self, token: StoredToken) -> StoredToken | None:
        """Write a new row and return it as stored; `None` where its token id is taken."""
        ...

    async def replace(self, before: StoredToken, after: StoredToken) -> StoredToken | None:
        """Write what differs between the two, where the row still has `before`'s version and scheme.

        Returns it as stored. The scheme is part of the condition because a rewrap changes it and not the version.
        """
        ...

    async def delete(self, token: StoredToken) -> bool:
        """Delete the row where it still has this version."""
        ...

    async def delete_many(self, tokens: Sequence[StoredToken]) -> int:
        """Delete those rows that still have these versions; return how many that was."""
        ...

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        """Count the rows by how they are encrypted. It reads all of them: with many that takes minutes."""
        ...

    async def schemes(self) -> list[str | None]:
        """Name the schemes that there are, `None` among them where rows have none; quick however many rows."""
        ...

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[StoredToken | UnreadableRow]:
        """Return some of the rows with exactly this scheme whose id is above `after`, by id.

        There may be fewer than `limit`, for stores cap their answers; only an empty page is the end.
        """
        ...

    async def get_rows(self, row_ids: Sequence[str]) -> Mapping[str, StoredToken]:
        """Return those rows that exist, by id."""
        ...

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        """Write the new ciphertexts of rows that are still what was decrypted; return the ids of those written.

        A row must still have the version, the scheme and both ciphertexts of `before`. Nothing changes but the secrets,
        the scheme, and what metadata says about the encryption. After a `StoreError` some may have been written, and
        sending the same again is safe.
        """
        ...

    async def close(self) -> None: ...
