"""The store for production: `oauth_tokens` in a Supabase project, through its table API."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from postgrest.types import CountMethod

from app.config.database.supabase import open_supabase_client
from app.errors import StoreError, StoreMisconfigured, StoreUnavailable
from app.tokens.rows import COLUMNS, changed_columns, from_columns, to_columns
from app.tokens.supabase_errors import UnknownOutcomeError, demand_postgrest_answer, translated

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import httpx
    from postgrest import AsyncRequestBuilder, AsyncSelectRequestBuilder
    from postgrest._async.request_builder import AsyncQueryRequestBuilder as _Query
    from pydantic import SecretStr
    from supabase import AsyncClient

    from app.tokens.models import StoredToken, TokenId

TABLE: Final = "oauth_tokens"
PAGE_ROWS: Final = 1_000
_COLUMNS: Final = ",".join(COLUMNS)
_SECRETS: Final = frozenset({"access_token", "refresh_token"})


class SupabaseRepository:
    """`TokenRepository` over PostgREST.

    PostgREST commits even if its caller is gone, so a write whose answer is lost is read back: the row either holds
    exactly what was written, which is success, or the outcome stays unknown and is reported as such. A write is never
    sent twice.
    """

    def __init__(self, *, client: AsyncClient, http: httpx.AsyncClient) -> None:
        self._client = client
        self._http = http

    @classmethod
    async def connect(cls, *, url: str, service_key: SecretStr) -> SupabaseRepository:
        """Build the repository. Nothing is sent yet; `check` does that."""
        client, http = await open_supabase_client(url=url, service_key=service_key, on_response=demand_postgrest_answer)
        return cls(client=client, http=http)

    async def check(self) -> None:
        await self._read(self._table().select(_COLUMNS).limit(1))
        # row-level security hides rows without a word, so an empty answer alone proves nothing
        with _outcome_does_not_matter(), translated():
            answer = await self._client.rpc("token_vault_sees_every_row", get=True).execute()
        if answer.data is not True:
            message = "SUPABASE_SERVICE_KEY sees no rows of oauth_tokens: it is not the service role's key"
            raise StoreMisconfigured(message)

    async def get(self, token_id: TokenId) -> StoredToken | None:
        query = (
            self._select()
            .eq("user_id", token_id.user_id)
            .eq("provider", token_id.provider)
            .eq("service_type", token_id.service_type)
        )
        rows, _ = await self._read(query)
        return from_columns(rows[0]) if rows else None

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, StoredToken]:
        if not token_ids:
            return {}
        wanted = set(token_ids)
        users = sorted({token_id.user_id for token_id in wanted})
        providers = sorted({token_id.provider for token_id in wanted})
        found = await self._read_pages({"user_id": users, "provider": providers})
        return {token.token_id: token for token in found if token.token_id in wanted}

    async def list_for_user(self, user_id: str) -> list[StoredToken]:
        return sorted(await self._read_pages({"user_id": [user_id]}), key=lambda token: token.token_id)

    async def insert(self, token: StoredToken) -> StoredToken | None:
        # an upsert that ignores duplicates is one conditional INSERT, and does not fill the database's error log
        query = self._table().upsert(
            to_columns(token), on_conflict="user_id,provider,service_type", ignore_duplicates=True
        )
        try:
            rows, _ = await _execute(query)
        except UnknownOutcomeError as unknown:
            return await self._confirmed(token, set(COLUMNS), unknown)
        return from_columns(rows[0]) if rows else None

    async def replace(self, before: StoredToken, after: StoredToken) -> StoredToken | None:
        columns = changed_columns(before, after)
        query = self._table().update(columns).eq("id", before.id).eq("version", before.version)
        try:
            rows, _ = await _execute(query)
        except UnknownOutcomeError as unknown:
            return await self._confirmed(after, set(columns), unknown)
        return from_columns(rows[0]) if rows else None

    async def delete(self, token: StoredToken) -> bool:
        query = self._table().delete().eq("id", token.id).eq("version", token.version)
        try:
            rows, _ = await _execute(query)
        except UnknownOutcomeError as unknown:
            if await self._find(token.id, unknown) is None:
                return True
            raise unknown.store_error from None
        return bool(rows)

    async def delete_for_user(self, user_id: str) -> int:
        query = self._table().delete(count=CountMethod.exact).eq("user_id", user_id)
        rows, count = await self._read(query)  # after a lost answer nobody can tell how many there were
        return len(rows) if count is None else count

    async def close(self) -> None:
        await self._http.aclose()

    def _table(self) -> AsyncRequestBuilder:
        return self._client.table(TABLE)

    def _select(self) -> AsyncSelectRequestBuilder:
        return self._table().select(_COLUMNS)

    async def _read(self, query: _Query) -> tuple[list[dict[str, Any]], int | None]:
        with _outcome_does_not_matter():
            return await _execute(query)

    async def _read_pages(self, members: Mapping[str, list[str]]) -> list[StoredToken]:
        """Read every row whose columns are among `members`.

        PostgREST caps an answer at some number of rows, usually 1 000, without a word. Only a count proves that
        nothing is missing; where something is, the next page starts behind the last id.
        """
        tokens: list[StoredToken] = []
        while True:
            query = self._table().select(_COLUMNS, count=CountMethod.exact)
            for column, values in members.items():
                query = query.in_(column, values)
            if tokens:
                query = query.gt("id", tokens[-1].id)
            rows, count = await self._read(query.order("id").limit(PAGE_ROWS))
            if count is None or (count > 0 and not rows):
                message = "the token store did not say how many rows there are"
                raise StoreUnavailable(message)
            tokens += [from_columns(row) for row in rows]
            if len(rows) == count:
                return tokens

    async def _confirmed(self, written: StoredToken, columns: set[str], unknown: UnknownOutcomeError) -> StoredToken:
        """Read a row back after a write whose answer was lost; raise where it does not hold what was written.

        A ciphertext is never made twice, so it and the version prove whose write it is. Without one, every column
        that was written has to match.
        """
        row = await self._find(written.id, unknown)
        if row is not None and row.version == written.version:
            differing = columns & changed_columns(row, written).keys()
            if not differing & (_SECRETS if columns & _SECRETS else columns):
                return row
        raise unknown.store_error from None

    async def _find(self, row_id: str, unknown: UnknownOutcomeError) -> StoredToken | None:
        try:
            rows, _ = await self._read(self._select().eq("id", row_id))
        except StoreError:
            raise unknown.store_error from None
        return from_columns(rows[0]) if rows else None


async def _execute(query: _Query) -> tuple[list[dict[str, Any]], int | None]:
    """Send a query once; return its rows and, where one was asked for, their count beyond any cap."""
    with translated():
        answer = await query.execute()
    rows: Any = answer.data
    # the client hands on whatever JSON came
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UnknownOutcomeError(StoreUnavailable("the token store answered with something that is not rows"))
    return rows, answer.count


@contextmanager
def _outcome_does_not_matter() -> Iterator[None]:
    """Report a read whose outcome is unknown as what kept its answer away."""
    try:
        yield
    except UnknownOutcomeError as unknown:
        raise unknown.store_error from None
