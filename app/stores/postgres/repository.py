"""The PostgreSQL store: `oauth_tokens` through a connection to the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from app.config.database_url import DatabaseUrl
from app.errors import StoreMisconfigured, WritesUnavailable
from app.stores.access import AccessFinding
from app.stores.lost_answers import UnknownOutcomeError, confirm_write
from app.stores.postgres import statements
from app.stores.postgres.connections import Connections
from app.stores.postgres.server import SERVER, ServerReport, server_report
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
from app.tokens.census import CensusRow
from app.tokens.due_tokens import DuePage, DuePosition, DueTokens
from app.tokens.models import Deletions, Rewrap, StoredToken, TokenFilter, TokenId, TokenRow
from app.tokens.repository import MAXIMUM_LISTED

_CHUNK_ROWS: Final = 500  # rows in one deletion
_BATCH_TOKENS: Final = 100
_CENSUS_SECONDS: Final = 310.0  # longer than the function's own limit in migration 0003


class PostgresRepository:
    """`TokenRepository` over asyncpg.

    A write is sent once. If its answer is lost, after COMMIT for example, the row is read back: the write succeeded if
    the row holds what was written; otherwise the outcome stays unknown and the call raises, as it does after every
    deletion whose answer is lost.
    """

    def __init__(self, *, connections: Connections) -> None:
        self._connections = connections
        self._reads = ReadBatcher(fetch=self._read_tokens, batch_tokens=_BATCH_TOKENS)

    @classmethod
    async def connect(cls, *, url: Callable[[], DatabaseUrl], pool_size: int) -> PostgresRepository:
        """Build the repository. Connects to nothing; `check` does."""
        connections = Connections(url=url, size=pool_size)
        await connections.open()
        return cls(connections=connections)

    async def check(self) -> None:
        try:
            await self._read(statements.ANY_ROW)
        except StoreMisconfigured as error:
            raise await self._naming_missing_columns(error) from None
        # row level security hides rows silently, so an empty answer proves nothing
        if await self._call(statements.SEES_EVERY_ROW) is not True:
            raise StoreMisconfigured(
                "the user of DATABASE_URL sees no rows of oauth_tokens: it does not bypass row level security"
            )
        if (await self.server()).read_only:
            raise WritesUnavailable("the database is read-only; reads go on")

    async def get(self, token_id: TokenId) -> TokenRow | None:
        return await self._reads.get(token_id)

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, TokenRow]:
        if not token_ids:
            return {}
        return {row.token_id: row for row in await self._read_tokens(token_ids)}

    async def list_for_user(self, user_id: str, *, limit: int = MAXIMUM_LISTED + 1) -> list[TokenRow]:
        rows = await self._read(statements.BY_USER, user_id, limit)
        return sorted(rows, key=lambda row: row.token_id)

    async def find(self, wanted: TokenFilter, *, after: str | None, limit: int) -> list[TokenRow]:
        sql, arguments = statements.find(wanted, after=require_uuid(after))
        return await self._read(sql, *arguments, limit)

    async def insert(self, token: StoredToken) -> StoredToken | None:
        columns = _encode(to_columns(token))
        try:
            rows = await self._connections.write(statements.INSERT, *(columns[name] for name in COLUMNS))
        except UnknownOutcomeError as unknown:
            return await confirm_write(token, set(COLUMNS), unknown, read_back=self.read_back)
        return from_columns(rows[0]) if rows else None

    async def replace(self, before: TokenRow, after: StoredToken) -> StoredToken | None:
        columns = _encode(changed_columns(before, after))
        generation = generation_to_keep(before, columns)
        scheme = [before.encryption_scheme] if isinstance(before, StoredToken) else []
        unclaimed = [] if generation is None else [generation]
        sql = statements.update(list(columns), with_scheme=bool(scheme), with_generation=bool(unclaimed))
        try:
            rows = await self._connections.write(sql, *columns.values(), before.id, before.version, *scheme, *unclaimed)
        except UnknownOutcomeError as unknown:
            return await confirm_write(after, set(columns), unknown, read_back=self.read_back)
        return from_columns(rows[0]) if rows else None

    async def delete(self, row: TokenRow) -> bool:
        # not read back: a row that is gone does not show who deleted it
        with deleting():
            return bool(await self._connections.read(statements.DELETE, row.id, row.version))

    async def delete_many(self, rows: Sequence[TokenRow]) -> Deletions:
        return await delete_in_chunks(rows, self._delete_chunk, chunk_rows=_CHUNK_ROWS)

    async def _delete_chunk(self, rows: Sequence[TokenRow]) -> int:
        ids, versions = [row.id for row in rows], [row.version for row in rows]
        with deleting():
            return len(await self._connections.read(statements.DELETE_MANY, ids, versions))

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        answer = await self._connections.read(statements.CENSUS, provider, slow_seconds=_CENSUS_SECONDS)
        return [
            CensusRow(line["scheme"], tuple(sorted({line["access"], line["refresh"]} - {None})), int(line["rows"]))
            for line in _answer(answer)
        ]

    async def schemes(self) -> list[str | None]:
        return list(await self._call(statements.SCHEMES))

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[TokenRow]:
        if scheme is None:
            return await self._read(statements.PAGE_WITHOUT_SCHEME, provider, after, limit)
        return await self._read(statements.PAGE, provider, after, limit, scheme)

    async def read_back(self, row_ids: Sequence[str]) -> Mapping[str, TokenRow]:
        rows = await self._read(statements.READ_BACK, list(row_ids))
        return {row.id: row for row in rows}

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        return set(await self._change(statements.REPLACE_CIPHERTEXTS, list(map(rewrap_columns, rewraps))))

    async def claim_refresh(self, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
        claim = refresh_claim(token, holder=holder, lease_seconds=lease_seconds)
        return bool(await self._change(statements.CLAIM_REFRESH, claim))

    async def settle_refresh(self, claimed: StoredToken, after: StoredToken) -> bool:
        return bool(await self._change(statements.SETTLE_REFRESH, refresh_settlement(claimed, after)))

    async def due_for_refresh(self, due: DueTokens, *, after: DuePosition | None, limit: int) -> DuePage:
        arguments = [due.provider, to_text(due.before), due.failed, to_text(due.now), limit]
        position = [] if after is None else [after.time, after.row_id]
        rows = await self._connections.read(
            statements.due_for_refresh(due.by, after=after is not None), *arguments, *position
        )
        return due_page([row for row in rows if row["id"] is not None], due.by)

    async def access_findings(self) -> list[AccessFinding]:
        """Return what lets other roles than the vault's reach the rows; the login role's own membership is none."""
        user = (await self.server()).user
        own = f"{user} may act as token_vault, because it is a member"
        findings = await self._call(statements.ACCESS_FINDINGS)
        return [AccessFinding(found["kind"], found["text"]) for found in findings if found["text"] != own]

    async def server(self) -> ServerReport:
        """Return what the server says about itself and the user of this connection."""
        [row] = await self._connections.read(SERVER)
        return server_report(row, direct=self._connections.direct)

    async def close(self) -> None:
        await self._reads.close()
        await self._connections.close()

    async def _read(self, sql: str, *arguments: object) -> list[TokenRow]:
        rows = await self._connections.read(sql, *arguments)
        return [decode_or_report(row) for row in rows if row["id"] is not None]

    async def _read_tokens(self, wanted: Iterable[TokenId]) -> list[TokenRow]:
        columns = zip(*((one.user_id, one.provider, one.service_type) for one in wanted), strict=True)
        return await self._read(statements.BY_TOKEN_IDS, *columns)

    async def _call(self, sql: str) -> Any:  # noqa: ANN401  any JSON
        return _answer(await self._connections.read(sql))

    async def _change(self, sql: str, change: object) -> list[str]:
        """Call a function of the migrations that writes; return the ids of the rows that it has written."""
        # read: these changes can be repeated safely, so an unknown outcome is a plain error
        [row] = await self._connections.read(sql, json.dumps(change))
        written: list[str] = json.loads(row["answer"])
        return written

    async def _naming_missing_columns(self, error: StoreMisconfigured) -> StoreMisconfigured:
        """Return an error that names the missing columns, or `error` if it has another cause."""
        present = {row["name"] for row in await self._connections.read(statements.COLUMN_NAMES)}
        missing = [name for name in COLUMNS if name not in present]
        if present and missing:
            return StoreMisconfigured(f"oauth_tokens lacks the columns {', '.join(missing)}; run `token-vault migrate`")
        return error


def _encode(columns: dict[str, Any]) -> dict[str, Any]:
    if "metadata" in columns:
        columns["metadata"] = json.dumps(columns["metadata"])
    return columns


def _answer(rows: Sequence[Mapping[str, Any]]) -> Any:  # noqa: ANN401  any JSON
    return json.loads(rows[0]["answer"])
