"""Instrumentation of a store: one observer sees every call."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Protocol, TypeVar

from app.tokens.census import CensusRow
from app.tokens.due_tokens import DuePage, DuePosition, DueTokens
from app.tokens.models import Deletions, Rewrap, StoredToken, TokenFilter, TokenId, TokenRow
from app.tokens.repository import MAXIMUM_LISTED, TokenRepository

T = TypeVar("T")


class StoreObserver(Protocol):
    """Awaits one call to the store and returns its result or raises its error, unchanged."""

    async def __call__(self, operation: str, call: Awaitable[T]) -> T: ...


class InstrumentedRepository:
    """`TokenRepository` that passes each call to another one through `observe`.

    Written out, so that mypy compares every method with the Protocol.
    """

    def __init__(self, *, tokens: TokenRepository, observe: StoreObserver) -> None:
        self._tokens = tokens
        self._observe = observe

    async def check(self) -> None:
        await self._observe("check", self._tokens.check())

    async def get(self, token_id: TokenId) -> TokenRow | None:
        return await self._observe("get", self._tokens.get(token_id))

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, TokenRow]:
        return await self._observe("get_many", self._tokens.get_many(token_ids))

    async def list_for_user(self, user_id: str, *, limit: int = MAXIMUM_LISTED + 1) -> list[TokenRow]:
        return await self._observe("list_for_user", self._tokens.list_for_user(user_id, limit=limit))

    async def find(self, wanted: TokenFilter, *, after: str | None, limit: int) -> list[TokenRow]:
        return await self._observe("find", self._tokens.find(wanted, after=after, limit=limit))

    async def insert(self, token: StoredToken) -> StoredToken | None:
        return await self._observe("insert", self._tokens.insert(token))

    async def replace(self, before: TokenRow, after: StoredToken) -> StoredToken | None:
        return await self._observe("replace", self._tokens.replace(before, after))

    async def delete(self, row: TokenRow) -> bool:
        return await self._observe("delete", self._tokens.delete(row))

    async def delete_many(self, rows: Sequence[TokenRow]) -> Deletions:
        return await self._observe("delete_many", self._tokens.delete_many(rows))

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        return await self._observe("census", self._tokens.census(provider=provider))

    async def schemes(self) -> list[str | None]:
        return await self._observe("schemes", self._tokens.schemes())

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[TokenRow]:
        return await self._observe("page", self._tokens.page(scheme, after=after, limit=limit, provider=provider))

    async def read_back(self, row_ids: Sequence[str]) -> Mapping[str, TokenRow]:
        return await self._observe("read_back", self._tokens.read_back(row_ids))

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        return await self._observe("replace_ciphertexts", self._tokens.replace_ciphertexts(rewraps))

    async def claim_refresh(self, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
        call = self._tokens.claim_refresh(token, holder=holder, lease_seconds=lease_seconds)
        return await self._observe("claim_refresh", call)

    async def settle_refresh(self, claimed: StoredToken, after: StoredToken) -> bool:
        return await self._observe("settle_refresh", self._tokens.settle_refresh(claimed, after))

    async def due_for_refresh(self, due: DueTokens, *, after: DuePosition | None, limit: int) -> DuePage:
        return await self._observe("due_for_refresh", self._tokens.due_for_refresh(due, after=after, limit=limit))

    async def close(self) -> None:
        await self._tokens.close()
