"""The store for production: `oauth_tokens` in a Supabase project, through its table API."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast
from uuid import UUID

import httpx
from postgrest import AsyncFilterRequestBuilder, AsyncRequestBuilder, AsyncSelectRequestBuilder
from postgrest.types import CountMethod
from pydantic import SecretStr

from app.config.database.supabase import open_supabase_client
from app.errors import StoreError, StoreMisconfigured, StoreUnavailable
from app.stores.rows import COLUMNS, changed_columns, encryption_metadata, from_columns, to_columns
from app.stores.supabase import postgrest as postgrest_query
from app.stores.supabase.lookup_queue import LookupQueue
from app.stores.supabase.postgrest import STRANGE, UnknownOutcomeError, require_postgrest_answer
from app.tokens.census import CensusRow
from app.tokens.models import Rewrap, StoredToken, TokenId, UnreadableRow

if TYPE_CHECKING:
    from supabase import AsyncClient


_Filterable = TypeVar("_Filterable", bound="AsyncSelectRequestBuilder | AsyncFilterRequestBuilder")
TABLE: Final = "oauth_tokens"
PAGE_ROWS: Final = 1_000
CHUNK_IDS: Final = 25  # keeps a URL below the 8 KiB that gateways take
CENSUS_SECONDS: Final = 310.0  # longer than its statement_timeout in migration 0003
_CENSUS: Final = "token_vault_census"
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
        self._lookups = LookupQueue(fetch=self._read_chunk)

    @classmethod
    async def connect(cls, *, url: str, service_key: SecretStr) -> SupabaseRepository:
        """Build the repository. Nothing is sent yet; `check` does that."""
        client, http = await open_supabase_client(
            url=url,
            service_key=service_key,
            on_response=require_postgrest_answer,
            slow_functions={_CENSUS: CENSUS_SECONDS},
        )
        return cls(client=client, http=http)

    async def check(self) -> None:
        try:
            await postgrest_query.read(self._table().select(_COLUMNS).limit(1))
        except StoreMisconfigured as error:
            raise await self._named(error) from None
        # row-level security hides rows without a word, so an empty answer alone proves nothing
        if await postgrest_query.call(self._client.rpc("token_vault_sees_every_row", get=True)) is not True:
            raise StoreMisconfigured(
                "SUPABASE_SERVICE_KEY sees no rows of oauth_tokens: it is not the service role's key"
            )

    async def get(self, token_id: TokenId) -> StoredToken | None:
        return await self._lookups.get(token_id)

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, StoredToken]:
        if not token_ids:
            return {}
        wanted = sorted(set(token_ids))
        chunks = [wanted[at : at + CHUNK_IDS] for at in range(0, len(wanted), CHUNK_IDS)]
        found = await asyncio.gather(*(self._read_chunk(chunk) for chunk in chunks))
        return {token.token_id: token for tokens in found for token in tokens}

    async def list_for_user(self, user_id: str) -> list[StoredToken]:
        rows = await self._read_pages({"user_id": [user_id]})
        return sorted(map(from_columns, rows), key=lambda token: token.token_id)

    async def insert(self, token: StoredToken) -> StoredToken | None:
        # an upsert that ignores duplicates is one conditional INSERT, and does not fill the database's error log
        query = self._table().upsert(
            to_columns(token), on_conflict="user_id,provider,service_type", ignore_duplicates=True
        )
        try:
            rows = await postgrest_query.write(query)
        except UnknownOutcomeError as unknown:
            return await self._confirmed(token, set(COLUMNS), unknown)
        return from_columns(rows[0]) if rows else None

    async def replace(self, before: StoredToken, after: StoredToken) -> StoredToken | None:
        columns = changed_columns(before, after)
        query = self._table().update(columns).eq("id", before.id).eq("version", before.version)
        query = _under_scheme(query, before.encryption_scheme)
        try:
            rows = await postgrest_query.write(query)
        except UnknownOutcomeError as unknown:
            return await self._confirmed(after, set(columns), unknown)
        return from_columns(rows[0]) if rows else None

    async def delete(self, token: StoredToken) -> bool:
        query = self._table().delete().eq("id", token.id).eq("version", token.version)
        try:
            rows = await postgrest_query.write(query)
        except UnknownOutcomeError as unknown:
            if await self._find(token.id, unknown) is None:
                return True
            raise unknown.store_error from None
        return bool(rows)

    async def delete_many(self, tokens: Sequence[StoredToken]) -> int:
        deleted = 0
        for chunk in (tokens[at : at + CHUNK_IDS] for at in range(0, len(tokens), CHUNK_IDS)):
            # raw filter text, and all of it ours: ids as the database gave them, and numbers
            conditions = ",".join(f"and(id.eq.{UUID(token.id)},version.eq.{int(token.version)})" for token in chunk)
            # no read-back: how many there were, a lost answer takes along
            rows, _ = await postgrest_query.read(self._table().delete().or_(conditions))
            deleted += len(rows)
        return deleted

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        lines = await self._call(_CENSUS, {"only_provider": provider})
        try:
            return [
                CensusRow(line["scheme"], tuple(sorted({line["access"], line["refresh"]} - {None})), int(line["rows"]))
                for line in lines
            ]
        except (KeyError, TypeError, ValueError):
            raise StoreMisconfigured(STRANGE) from None

    async def schemes(self) -> list[str | None]:
        return await self._call("token_vault_schemes", {})

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[StoredToken | UnreadableRow]:
        query = _under_scheme(self._select(), scheme)
        if after is not None:
            query = query.gt("id", after)
        if provider is not None:
            query = query.eq("provider", provider)
        rows, _ = await postgrest_query.read(query.order("id").limit(limit))
        return [_decode_or_report(row) for row in rows]

    async def get_rows(self, row_ids: Sequence[str]) -> Mapping[str, StoredToken]:
        found: dict[str, StoredToken] = {}
        for chunk in (row_ids[at : at + CHUNK_IDS] for at in range(0, len(row_ids), CHUNK_IDS)):
            rows, _ = await postgrest_query.read(self._select().in_("id", chunk))
            found |= {row["id"]: from_columns(row) for row in rows}
        return found

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        changes = [_rewrap_columns(rewrap) for rewrap in rewraps]
        return set(await self._call("token_vault_replace_ciphertexts", {"changes": changes}))

    async def close(self) -> None:
        await self._lookups.close()
        await self._http.aclose()

    def _table(self) -> AsyncRequestBuilder:
        return self._client.table(TABLE)

    def _select(self) -> AsyncSelectRequestBuilder:
        return self._table().select(_COLUMNS)

    async def _call(self, function: str, arguments: dict[str, Any]) -> list[Any]:
        """Call one of the migrations' functions; each returns a JSON array, which no cap on rows cuts."""
        answer = await postgrest_query.call(self._client.rpc(function, arguments))
        if not isinstance(answer, list):
            raise StoreUnavailable(STRANGE)
        return answer

    async def _read_chunk(self, wanted: Sequence[TokenId]) -> list[StoredToken]:
        """Read those of up to 25 tokens that exist."""
        members = {
            "user_id": sorted({token_id.user_id for token_id in wanted}),
            "provider": sorted({token_id.provider for token_id in wanted}),
            "service_type": sorted({token_id.service_type for token_id in wanted}),
        }
        if len(wanted) == 1:  # its token id is unique, so no count is needed
            query = self._select()
            for column, [value] in members.items():
                query = query.eq(column, value)
            rows, _ = await postgrest_query.read(query)
        else:
            rows = await self._read_pages(members)
        if any(row.get(column) not in values for row in rows for column, values in members.items()):
            raise StoreMisconfigured("the token store answered with rows that were not asked for")
        names = set(wanted)  # the lists also match combinations that nobody asked for
        tokens = (row for row in rows if TokenId(row["user_id"], row["provider"], row["service_type"]) in names)
        return [from_columns(row) for row in tokens]

    async def _named(self, error: StoreMisconfigured) -> StoreMisconfigured:
        """Find out which columns the table lacks, where that is what is wrong."""
        missing = []
        for column in COLUMNS:
            try:
                await postgrest_query.read(self._table().select(column).limit(1))
            except StoreMisconfigured:
                missing.append(column)
        if 0 < len(missing) < len(COLUMNS):
            return StoreMisconfigured(f"oauth_tokens lacks the columns {', '.join(missing)}; run migrations/")
        return error

    async def _read_pages(self, members: Mapping[str, list[str]]) -> list[dict[str, Any]]:
        """Read every row whose columns are among `members`.

        PostgREST caps an answer at some number of rows, usually 1 000, without a word. Only a count proves that
        nothing is missing; where something is, the next page starts behind the last id.
        """
        found: list[dict[str, Any]] = []
        while True:
            query = self._table().select(_COLUMNS, count=CountMethod.exact)
            for column, values in members.items():
                query = query.in_(column, values)
            if found:
                query = query.gt("id", found[-1]["id"])
            rows, count = await postgrest_query.read(query.order("id").limit(PAGE_ROWS))
            if count is None or (count > 0 and not rows):
                raise StoreUnavailable("the token store did not say how many rows there are")
            found += rows
            if len(rows) == count:
                return found

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
            rows, _ = await postgrest_query.read(self._select().eq("id", row_id))
        except StoreError:
            raise unknown.store_error from None
        return from_columns(rows[0]) if rows else None


def _under_scheme(query: _Filterable, scheme: str | None) -> _Filterable:
    filtered = query.is_("encryption_scheme", "null") if scheme is None else query.eq("encryption_scheme", scheme)
    return cast("_Filterable", filtered)


def _decode_or_report(row: Mapping[str, Any]) -> StoredToken | UnreadableRow:
    try:
        return from_columns(row)
    except StoreMisconfigured as error:
        return UnreadableRow(str(row.get("id")), error.detail)


def _rewrap_columns(rewrap: Rewrap) -> dict[str, Any]:
    before, after = rewrap.before, rewrap.after
    return {
        "id": before.id,
        "version": before.version,
        "old_scheme": before.encryption_scheme,
        "old_access_token": before.access_ciphertext,
        "old_refresh_token": before.refresh_ciphertext,
        "access_token": after.access_ciphertext,
        "refresh_token": after.refresh_ciphertext,
        "encryption_scheme": after.encryption_scheme,
        "metadata": {name: value for name, value in encryption_metadata(after).items() if value is not None},
    }
