"""What a store of tokens has to offer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from app.tokens.models import StoredToken, TokenId


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
        """Write what differs between the two, where the row still has `before`'s version; return it as stored."""
        ...

    async def delete(self, token: StoredToken) -> bool:
        """Delete the row where it still has this version."""
        ...

    async def delete_many(self, tokens: Sequence[StoredToken]) -> int:
        """Delete those rows that still have these versions; return how many that was."""
        ...

    async def close(self) -> None: ...
