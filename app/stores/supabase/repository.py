"""The Supabase store: `oauth_tokens` in a Supabase project, through its table API (PostgREST)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeVar, cast
from uuid import UUID

import httpx
from postgrest import AsyncFilterRequestBuilder, AsyncRequestBuilder, AsyncSelectRequestBuilder
from postgrest.types import CountMethod
from pydantic import SecretStr
from supabase import AsyncClient

from app.config.database.supabase import open_supabase_client
from app.errors import StoreMisconfigured, StoreUnavailable
from app.stores.access import AccessFinding
from app.stores.lost_answers import UnknownOutcomeError, confirm_write
from app.stores.read_batching import ReadBatcher
from app.stores.references import delete_in_chunks, deleting
from app.stores.rows import (
    COLUMNS,
    changed_columns,
    decode_or_report,
    due_page,
    from_columns,
    generation_to_keep,
    refresh_claim,
    refresh_settlement,
    require_uuid,
    rewrap_columns,
    to_columns,
    to_text,
)
from app.stores.supabase.postgrest import (
    NOT_ROWS,
    call_function,
    execute,
    execute_write,
    is_rows,
    require_postgrest_answer,
)
from app.tokens.census import CensusRow
from app.tokens.due_tokens import DueBy, DuePage, DuePosition, DueTokens
from app.tokens.models import Deletions, Rewrap, StoredToken, TokenFilter, TokenId, TokenRow
from app.tokens.repository import MAXIMUM_LISTED

Item = TypeVar("Item")
_Filterable = TypeVar("_Filterable", bound=AsyncSelectRequestBuilder | AsyncFilterRequestBuilder)

_PAGE_ROWS: Final = 1_000
_CHUNK_IDS: Final = 25  # keeps a URL below the 8 KiB that gateways accept
_CENSUS_FUNCTION: Final = "token_vault_census"
_CENSUS_SECONDS: Final = 310.0  # longer than the function's statement_timeout in migration 0003
# metadata as text: JSON that does not parse must not fail the whole answer
_SELECTED: Final = {name: "metadata::text" if name == "metadata" else name for name in COLUMNS}
_COLUMNS: Final = ",".join(_SELECTED.values())


class SupabaseRepository:
    """`TokenRepository` over PostgREST.

    PostgREST commits even if its client has disconnected, so a write whose answer is lost is read back: if the row
    holds what was written, the write succeeded; otherwise the outcome stays unknown and the call raises, as it does
    after every deletion whose answer is lost. A write is never sent twice.
    """

    def __init__(self, *, client: AsyncClient, http: httpx.AsyncClient) -> None:
        self._client = client
        self._http = http
        self._reads = ReadBatcher(fetch=self._read_chunk, batch_tokens=_CHUNK_IDS)

    @classmethod
    async def connect(cls, *, url: str, service_key: SecretStr) -> SupabaseRepository:
        """Build the repository. Sends nothing; `check` does."""
        client, http = await open_supabase_client(
            url=url,
            service_key=service_key,
            on_response=require_postgrest_answer,
            function_read_seconds={_CENSUS_FUNCTION: _CENSUS_SECONDS},
        )
        return cls(client=client, http=http)

    async def check(self) -> None:
        try:
            await execute(self._table().select(_COLUMNS).limit(1))
        except StoreMisconfigured as error:
            raise await self._naming_missing_columns(error) from None
        # row level security hides rows silently, so an empty answer proves nothing
        if await call_function(self._client.rpc("token_vault_sees_every_row", get=True)) is not True:
            raise StoreMisconfigured(
                "SUPABASE_SERVICE_KEY sees no rows of oauth_tokens: its role does not bypass row level security"
            )

    async def get(self, token_id: TokenId) -> TokenRow | None:
        return await self._reads.get(token_id)

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, TokenRow]:
        if not token_ids:
            return {}
        wanted = sorted(set(token_ids))
        found = await asyncio.gather(*(self._read_chunk(chunk) for chunk in _chunks(wanted)))
        return {row.token_id: row for rows in found for row in rows}

    async def list_for_user(self, user_id: str, *, limit: int = MAXIMUM_LISTED + 1) -> list[TokenRow]:
        rows = await self._read_pages({"user_id": [user_id]}, limit=limit)
        return sorted(map(decode_or_report, rows), key=lambda row: row.token_id)

    async def find(self, wanted: TokenFilter, *, after: str | None, limit: int) -> list[TokenRow]:
        query = self._select()
        if wanted.providers is not None:
            query = query.in_("provider", sorted(wanted.providers))
        if wanted.expires_before is not None:
            query = query.lt("expires_at", to_text(wanted.expires_before))
        if wanted.status is not None:
            query = query.eq("token_vault_status", wanted.status.value)  # a function of migration 0002
        if require_uuid(after) is not None:
            query = query.gt("id", after)
        rows, _ = await execute(query.order("id").limit(limit))
        return list(map(decode_or_report, rows))

    async def insert(self, token: StoredToken) -> StoredToken | None:
        # an upsert that ignores duplicates is one conditional INSERT, and logs no error in the database
        query = self._table().upsert(
            to_columns(token), on_conflict="user_id,provider,service_type", ignore_duplicates=True
        )
        try:
            rows = await execute_write(query.select(_COLUMNS))
        except UnknownOutcomeError as unknown:
            return await confirm_write(token, set(COLUMNS), unknown, read_back=self.read_back)
        return from_columns(rows[0]) if rows else None

    async def replace(self, before: TokenRow, after: StoredToken) -> StoredToken | None:
        columns = changed_columns(before, after)
        generation = generation_to_keep(before, columns)
        query = self._table().update(columns).eq("id", before.id).eq("version", before.version)
        if generation is not None:
            query = query.eq("refresh_generation", generation)
        if isinstance(before, StoredToken):
            query = _under_scheme(query, before.encryption_scheme)
        try:
            rows = await execute_write(query.select(_COLUMNS))
        except UnknownOutcomeError as unknown:
            return await confirm_write(after, set(columns), unknown, read_back=self.read_back)
        return from_columns(rows[0]) if rows else None

    async def delete(self, row: TokenRow) -> bool:
        # not read back: a row that is gone does not show who deleted it
        query = self._table().delete().eq("id", row.id).eq("version", row.version)
        with deleting():
            rows, _ = await execute(query.select("id"))
        return bool(rows)

    async def delete_many(self, rows: Sequence[TokenRow]) -> Deletions:
        return await delete_in_chunks(rows, self._delete_chunk, chunk_rows=_CHUNK_IDS)

    async def _delete_chunk(self, rows: Sequence[TokenRow]) -> int:
        # raw filter text, made only of ids that the database assigned and of numbers
        conditions = ",".join(f"and(id.eq.{UUID(row.id)},version.eq.{int(row.version)})" for row in rows)
        # not read back: a lost answer also loses the count
        # PostgREST applies `or` to what is returned as well, so it must contain both columns
        with deleting():
            gone, _ = await execute(self._table().delete().or_(conditions).select("id,version"))
        return len(gone)

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        lines = await self._call(_CENSUS_FUNCTION, {"only_provider": provider})
        try:
            return [
                CensusRow(line["scheme"], tuple(sorted({line["access"], line["refresh"]} - {None})), int(line["rows"]))
                for line in lines
            ]
        except (KeyError, TypeError, ValueError):
            raise StoreMisconfigured(NOT_ROWS) from None

    async def schemes(self) -> list[str | None]:
        return await self._call("token_vault_schemes", {})

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[TokenRow]:
        query = _under_scheme(self._select(), scheme)
        if after is not None:
            query = query.gt("id", after)
        if provider is not None:
            query = query.eq("provider", provider)
        rows, _ = await execute(query.order("id").limit(limit))
        return list(map(decode_or_report, rows))

    async def read_back(self, row_ids: Sequence[str]) -> Mapping[str, TokenRow]:
        call = self._client.rpc("token_vault_read_back", {"row_ids": list(row_ids)})
        rows = await call_function(call.select(_COLUMNS))
        if not is_rows(rows):
            raise StoreUnavailable(NOT_ROWS)
        return {row.id: row for row in map(decode_or_report, rows)}

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        changes = [rewrap_columns(rewrap) for rewrap in rewraps]
        return set(await self._call("token_vault_replace_ciphertexts", {"changes": changes}))

    async def claim_refresh(self, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
        claim = refresh_claim(token, holder=holder, lease_seconds=lease_seconds)
        return bool(await self._call("token_vault_claim_refresh", {"claim": claim}))

    async def settle_refresh(self, claimed: StoredToken, after: StoredToken) -> bool:
        settlement = refresh_settlement(claimed, after)
        return bool(await self._call("token_vault_settle_refresh", {"settlement": settlement}))

    async def due_for_refresh(self, due: DueTokens, *, after: DuePosition | None, limit: int) -> DuePage:
        column, now = due.by.column, to_text(due.now)
        query = self._select().eq("provider", due.provider).lt(column, to_text(due.before))
        # the condition of the indexes in migration 0005
        query = query.neq("refresh_token", "").or_("is_active.is.null,is_active.is.true")
        query = query.not_.is_("encryption_scheme", "null")
        query = query.gt("refresh_attempts", 0) if due.failed else query.eq("refresh_attempts", 0)
        query = query.or_(f"refresh_retry_at.is.null,refresh_retry_at.lte.{now}")
        query = query.or_(f"refresh_leased_until.is.null,refresh_leased_until.lt.{now}")
        if due.by is DueBy.UNKNOWN_EXPIRY:
            query = query.is_("expires_at", "null")
        if after is not None:
            # raw filter text, made only of a time and an id that the database wrote
            time, row_id = f'"{after.time}"', UUID(after.row_id)
            query = query.gte(column, after.time).or_(f"{column}.gt.{time},and({column}.eq.{time},id.gt.{row_id})")
        rows, _ = await execute(query.order(column).order("id").limit(limit))
        return due_page(rows, due.by)

    async def access_findings(self) -> list[AccessFinding]:
        """Return what in the database lets other roles than the vault's reach the rows; empty if nothing does."""
        findings = await self._call("token_vault_access_findings", {})
        try:
            return [AccessFinding(str(finding["kind"]), str(finding["text"])) for finding in findings]
        except (KeyError, TypeError):
            raise StoreUnavailable(NOT_ROWS) from None

    async def close(self) -> None:
        await self._reads.close()
        await self._http.aclose()

    def _table(self) -> AsyncRequestBuilder:
        return self._client.table("oauth_tokens")

    def _select(self) -> AsyncSelectRequestBuilder:
        return self._table().select(_COLUMNS)

    async def _call(self, function: str, arguments: dict[str, Any]) -> list[Any]:
        """Call a function of the migrations. Each returns one JSON array, to which the cap on rows does not apply."""
        answer = await call_function(self._client.rpc(function, arguments))
        if not isinstance(answer, list):
            raise StoreUnavailable(NOT_ROWS)
        return answer

    async def _read_chunk(self, wanted: Sequence[TokenId]) -> list[TokenRow]:
        """Read those of up to `_CHUNK_IDS` tokens that exist."""
        members = {
            "user_id": sorted({token_id.user_id for token_id in wanted}),
            "provider": sorted({token_id.provider for token_id in wanted}),
            "service_type": sorted({token_id.service_type for token_id in wanted}),
        }
        if len(wanted) == 1:  # a token id is unique, so no count is needed
            query = self._select()
            for column, [value] in members.items():
                query = query.eq(column, value)
            rows, _ = await execute(query)
        else:
            rows = await self._read_pages(members)
        if any(row.get(column) not in values for row in rows for column, values in members.items()):
            raise StoreMisconfigured("the token store answered with rows that were not asked for")
        names = set(wanted)  # the three lists also match combinations that were not asked for
        return [row for row in map(decode_or_report, rows) if row.token_id in names]

    async def _naming_missing_columns(self, error: StoreMisconfigured) -> StoreMisconfigured:
        """Return an error that names the missing columns, or `error` if it has another cause."""
        missing = []
        for column in COLUMNS:
            try:
                await execute(self._table().select(_SELECTED[column]).limit(1))
            except StoreMisconfigured:
                missing.append(column)
        if 0 < len(missing) < len(COLUMNS):
            return StoreMisconfigured(f"oauth_tokens lacks the columns {', '.join(missing)}; run `token-vault migrate`")
        return error

    async def _read_pages(self, members: Mapping[str, list[str]], *, limit: int = sys.maxsize) -> list[dict[str, Any]]:
        """Read every row whose columns are among `members`, or `limit` of them.

        PostgREST silently caps an answer at a number of rows, usually 1 000. Only the count proves that the answer
        is complete; if it is not, the next page starts after the last id.
        """
        found: list[dict[str, Any]] = []
        while True:
            query = self._table().select(_COLUMNS, count=CountMethod.exact)
            for column, values in members.items():
                query = query.in_(column, values)
            if found:
                query = query.gt("id", found[-1]["id"])
            rows, count = await execute(query.order("id").limit(min(_PAGE_ROWS, limit - len(found))))
            if count is None or (count > 0 and not rows):
                raise StoreUnavailable("the token store did not say how many rows there are")
            found += rows
            if len(rows) == count or len(found) == limit:
                return found


def _under_scheme(query: _Filterable, scheme: str | None) -> _Filterable:
    filtered = query.is_("encryption_scheme", "null") if scheme is None else query.eq("encryption_scheme", scheme)
    return cast("_Filterable", filtered)


def _chunks(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    return (items[at : at + _CHUNK_IDS] for at in range(0, len(items), _CHUNK_IDS))
