"""The SQLite store: one file, created on first start."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

import apsw

from app.errors import StoreError, StoreMisconfigured, WritesUnavailable
from app.security.formats import material_of
from app.stores.rows import (
    COLUMNS,
    changed_columns,
    decode_or_report,
    encryption_metadata,
    generation_to_keep,
    parse_json,
    refresh_claim,
    settled_columns,
    to_columns,
    to_text,
    unreadable,
)
from app.stores.sqlite import statements
from app.stores.sqlite.database import (
    connect,
    create_private,
    missing_columns,
    require_columns,
    translated,
    translating_sqlite_errors,
)
from app.stores.sqlite.group_commit import GroupCommitWriter, Parameters
from app.tokens.census import CensusRow
from app.tokens.due_tokens import DueBy, DuePage, DuePosition, DueTokens
from app.tokens.models import Deletions, Rewrap, StoredToken, TokenFilter, TokenId, TokenRow
from app.tokens.repository import MAXIMUM_LISTED

_CHUNK_ROWS: Final = 500  # rows in one statement
_PROBE_SECONDS: Final = 1.0  # another process may hold the lock for longer
_FEW_BYTES: Final = 64 * 1024  # with less on the disk, `check` fails before a write does

# An id that is not UTF-8 has a lone surrogate for each byte of it that is none, so that no two ids have one spelling.
_ID_ERRORS: Final = "surrogateescape"
_JSON_COLUMNS = frozenset({"scopes", "metadata"})


class SqliteRepository:
    """`TokenRepository` on one file, which several processes of one machine may share.

    WAL with `synchronous=FULL`: a write that has returned survives power loss. Writes run in the group commit's
    thread. Reads run on the event loop's thread: under WAL they wait for no writer, and a point read takes a few
    microseconds, far less than a hop to a thread.
    """

    def __init__(self, *, path: Path) -> None:
        """Open or create the file; raise a `StoreError` if that fails."""
        self._path = path
        self._raw_schemes: dict[str | None, bytes] = {}  # those that are not UTF-8, for `page`, as last listed
        with translating_sqlite_errors():
            create_private(path)
            self._inode = path.stat().st_ino
            self._writer = GroupCommitWriter(connect=lambda: connect(path), guard=self._require_same_file)
            self._reader = connect(path)
            self._reader.execute("PRAGMA query_only = ON")
            self._reader.set_busy_timeout(0)  # reads on the event loop, which must not block

    async def check(self) -> None:
        with translating_sqlite_errors():
            missing = missing_columns(self._reader)
            # reads the table, where SELECT 1 reads only an index, and decodes no column
            self._reader.execute("SELECT length(access_token) FROM oauth_tokens LIMIT 1").fetchall()
        require_columns(missing)
        self._require_same_file()
        if self._writer.disk_refused_lately:
            raise WritesUnavailable("the disk has refused a write within the last seconds; reads go on")
        if self._writer.disk_refused:
            await self._prove_writes()
        disk = os.statvfs(self._path)
        if disk.f_bavail * disk.f_frsize < _FEW_BYTES:
            raise WritesUnavailable("less than 64 KiB are free on the disk; reads go on, and writes fail")

    async def get(self, token_id: TokenId) -> TokenRow | None:
        rows = await self._read("WHERE user_id = ? AND provider = ? AND service_type = ?", token_id)
        return rows[0] if rows else None

    async def get_many(self, token_ids: Sequence[TokenId]) -> Mapping[TokenId, TokenRow]:
        if not token_ids:
            return {}
        values = ", ".join(["(?, ?, ?)"] * len(token_ids))
        parameters = [part for token_id in token_ids for part in token_id]
        rows = await self._read(f"WHERE (user_id, provider, service_type) IN (VALUES {values})", parameters)
        return {row.token_id: row for row in rows}

    async def list_for_user(self, user_id: str, *, limit: int = MAXIMUM_LISTED + 1) -> list[TokenRow]:
        return await self._read("WHERE user_id = ? ORDER BY provider, service_type LIMIT ?", (user_id, limit))

    async def find(self, wanted: TokenFilter, *, after: str | None, limit: int) -> list[TokenRow]:
        providers = sorted(wanted.providers or ())
        conditions: list[tuple[str, Sequence[Any]]] = []
        if wanted.providers is not None:
            conditions.append((f"provider IN ({', '.join('?' * len(providers))})", providers))
        if wanted.expires_before is not None:
            conditions.append(("expires_at < ?", [to_text(wanted.expires_before)]))
        if wanted.status is not None:
            conditions.append((f"{statements.STATUS} = ?", [wanted.status.value]))
        if after is not None:
            conditions.append((statements.AFTER_ID, [_raw_id(after)]))
        where = f"WHERE {' AND '.join(condition for condition, _ in conditions)}" if conditions else ""
        parameters = [value for _, values in conditions for value in values]
        with translating_sqlite_errors():  # without an index for the status, it may read the whole table
            return await asyncio.to_thread(
                self._rows_on_new_connection, f"{where} ORDER BY id LIMIT ?", [*parameters, limit]
            )

    async def insert(self, token: StoredToken) -> StoredToken | None:
        columns = _encode(to_columns(token))
        written = await self._write(statements.INSERT, [columns[name] for name in COLUMNS])
        return token if written else None

    async def replace(self, before: TokenRow, after: StoredToken) -> StoredToken | None:
        columns = _encode(changed_columns(before, after))
        generation = generation_to_keep(before, columns)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        where, parameters = statements.OF_VERSION, [*columns.values(), _raw_id(before.id), before.version]
        if isinstance(before, StoredToken):
            where, parameters = f"{where} AND encryption_scheme IS ?", [*parameters, before.encryption_scheme]
        if generation is not None:
            where, parameters = f"{where} AND refresh_generation = ?", [*parameters, generation]
        sql = f"UPDATE oauth_tokens SET {assignments} {where} RETURNING version"  # noqa: S608  column names only
        return after if await self._write(sql, parameters) else None

    async def delete(self, row: TokenRow) -> bool:
        return bool(await self._write(statements.DELETE, (_raw_id(row.id), row.version), erases=True))

    async def delete_many(self, rows: Sequence[TokenRow]) -> Deletions:
        # SQLite enforces foreign keys only on connections that ask for it, and the vault's do not
        deleted = 0
        for chunk in (rows[at : at + _CHUNK_ROWS] for at in range(0, len(rows), _CHUNK_ROWS)):
            values = ", ".join([f"({statements.ID}, ?)"] * len(chunk))
            parameters = [part for row in chunk for part in (_raw_id(row.id), row.version)]
            sql = f"DELETE FROM oauth_tokens WHERE (id, version) IN (VALUES {values}) RETURNING version"  # noqa: S608  placeholders only
            deleted += len(await self._write(sql, parameters, erases=True))
        return Deletions(deleted)

    async def census(self, *, provider: str | None = None) -> list[CensusRow]:
        return await asyncio.to_thread(self._count, provider)  # reads a whole index

    async def schemes(self) -> list[str | None]:
        with translating_sqlite_errors():
            rows = await asyncio.to_thread(self._read_on_new_connection, statements.SCHEMES, ())
        shown = {_shown(raw): raw for (raw,) in rows}
        self._raw_schemes = {text: raw for text, raw in shown.items() if raw is not None and text.encode() != raw}
        return list(shown)

    async def page(
        self, scheme: str | None, *, after: str | None, limit: int, provider: str | None = None
    ) -> list[TokenRow]:
        where = "WHERE encryption_scheme IS CAST(? AS TEXT)"
        parameters: list[Any] = [self._raw_schemes.get(scheme, scheme)]
        raw_after = None if after is None else _raw_id(after)
        for condition, value in ((statements.AFTER_ID, raw_after), ("provider = ?", provider)):
            if value is not None:
                where, parameters = f"{where} AND {condition}", [*parameters, value]
        with translating_sqlite_errors():
            rows = await asyncio.to_thread(
                self._rows_on_new_connection, f"{where} ORDER BY id LIMIT ?", [*parameters, limit]
            )
        if raw_after is not None and any(_raw_id(row.id) <= raw_after for row in rows):
            raise StoreMisconfigured("the database returned rows that an earlier page has: its ids are not ordered")
        return rows

    async def read_back(self, row_ids: Sequence[str]) -> Mapping[str, TokenRow]:
        # durable as every read: a commit is not visible before it is flushed
        found = [await self._read(statements.BY_ID, (_raw_id(row_id),)) for row_id in row_ids]
        return {row.id: row for rows in found for row in rows}

    async def replace_ciphertexts(self, rewraps: Sequence[Rewrap]) -> set[str]:
        # one statement per row, all in a few commits
        writes = (self._write(statements.REWRAP, _rewrap_parameters(rewrap)) for rewrap in rewraps)
        written: set[str] = set()
        for rows in await asyncio.gather(*writes, return_exceptions=True):
            if isinstance(rows, BaseException):
                raise rows
            written.update(row[0] for row in rows)
        return written

    async def claim_refresh(self, token: StoredToken, *, holder: str, lease_seconds: int) -> bool:
        claim = refresh_claim(token, holder=holder, lease_seconds=lease_seconds)
        return bool(await self._write(statements.CLAIM, claim))

    async def settle_refresh(self, claimed: StoredToken, after: StoredToken) -> bool:
        settled = settled_columns(claimed, after)
        columns = _encode(settled.columns)
        assignments = "".join(f"{name} = :{name}, " for name in columns)
        parameters = {
            **columns,
            "raise": int(settled.raises_version),
            "changes": json.dumps(settled.metadata, ensure_ascii=False),
            "id": _raw_id(claimed.id),
            "holder": claimed.refresh_state.holder,
            "generation": claimed.refresh_state.generation,
        }
        return bool(await self._write(statements.SETTLE.format(assignments=assignments), parameters))

    async def due_for_refresh(self, due: DueTokens, *, after: DuePosition | None, limit: int) -> DuePage:
        column = due.by.column
        more = " AND expires_at IS NULL" if due.by is DueBy.UNKNOWN_EXPIRY else ""
        parameters: dict[str, Any] = {
            "provider": due.provider,
            "before": to_text(due.before),
            "failed": int(due.failed),
            "now": to_text(due.now),
            "limit": limit,
        }
        if after is not None:
            more += f" AND ({column}, id) > (CAST(:time AS TEXT), {statements.ID.replace('?', ':id')})"
            parameters |= {"time": _raw_id(after.time), "id": _raw_id(after.row_id)}
        where = statements.DUE.format(column=column, more=more)
        with translating_sqlite_errors():
            rows = await asyncio.to_thread(self._raw_rows_on_new_connection, where, parameters)
        tokens = [row for row in map(_decode, rows) if isinstance(row, StoredToken)]
        if not rows:
            return DuePage(tokens, None)
        time, row_id = (_id_of(rows[-1][COLUMNS.index(name)]) for name in (column, "id"))
        return DuePage(tokens, DuePosition(time, row_id))

    async def close(self) -> None:
        self._reader.close()
        await self._writer.close()

    async def _read(self, where: str, parameters: Sequence[Any]) -> list[TokenRow]:
        try:
            return _rows(self._reader, where, parameters)
        except apsw.BusyError:  # another process recovers the database after a crash; wait for it off the loop
            with translating_sqlite_errors():
                return await asyncio.to_thread(self._rows_on_new_connection, where, parameters)
        except apsw.Error as error:
            raise translated(error) from None

    def _rows_on_new_connection(self, where: str, parameters: Parameters) -> list[TokenRow]:
        with self._new_connection() as connection:
            return _rows(connection, where, parameters)

    def _raw_rows_on_new_connection(self, where: str, parameters: Parameters) -> list[tuple[Any, ...]]:
        with self._new_connection() as connection:
            return _raw_rows(connection, where, parameters)

    def _read_on_new_connection(self, sql: str, parameters: Sequence[Any]) -> list[tuple[Any, ...]]:
        with self._new_connection() as connection:
            return list(connection.execute(sql, parameters))

    def _count(self, provider: str | None) -> list[CensusRow]:
        with translating_sqlite_errors(), self._new_connection() as connection:
            connection.create_scalar_function("material_of", _material_of, 1)
            return [
                CensusRow(_shown(scheme), tuple(sorted({name for name in materials if name})), count)
                for scheme, *materials, count in connection.execute(statements.CENSUS, {"provider": provider})
            ]

    def _new_connection(self) -> closing[apsw.Connection]:
        """Open the file again, for a read that may take long, as a context manager that closes it."""
        self._require_same_file()
        return closing(connect(self._path))

    def _require_same_file(self) -> None:
        """Raise if the path no longer names the open file, whose writes would be lost."""
        try:
            inode = self._path.stat().st_ino
        except OSError:
            inode = None
        if inode != self._inode:
            raise StoreMisconfigured("the database file was moved or replaced while it was open; nothing was written")

    async def _prove_writes(self) -> None:
        """Commit a write that changes nothing: the header's user version, again; raises `WritesUnavailable`.

        Free space alone shows neither a quota nor a limit on the file's size. An UPDATE of no row would write nothing.
        """
        version = self._reader.pragma("user_version")
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await self._write(f"PRAGMA user_version = {version}", ())
        except (StoreError, TimeoutError):
            raise WritesUnavailable("the disk has refused writes; reads go on") from None
        self._writer.disk_refused = False

    async def _write(self, sql: str, parameters: Parameters, *, erases: bool = False) -> list[tuple[Any, ...]]:
        try:
            with translating_sqlite_errors():
                return await self._writer.execute(sql, parameters, erases=erases)
        except (OverflowError, TypeError, ValueError):  # raised while the values were bound
            raise StoreMisconfigured("SQLite cannot hold a value of this row; nothing was written") from None


def _raw_id(row_id: str) -> bytes:
    return row_id.encode(errors=_ID_ERRORS)


def _id_of(raw: str | bytes) -> str:
    return raw.decode(errors=_ID_ERRORS) if isinstance(raw, bytes) else raw


def _encode(columns: dict[str, Any]) -> dict[str, Any]:
    return {
        name: json.dumps(value, ensure_ascii=False) if name in _JSON_COLUMNS else value
        for name, value in columns.items()
    }


def _rows(connection: apsw.Connection, where: str, parameters: Parameters) -> list[TokenRow]:
    return list(map(_decode, _raw_rows(connection, where, parameters)))


def _raw_rows(connection: apsw.Connection, where: str, parameters: Parameters) -> list[tuple[Any, ...]]:
    try:
        return connection.execute(f"{statements.SELECT} {where}", parameters).fetchall()
    except UnicodeDecodeError:  # text that is not UTF-8: find out in which rows
        return connection.execute(f"{statements.SELECT_BYTES} {where}", parameters).fetchall()


def _decode(row: tuple[Any, ...]) -> TokenRow:
    columns = dict(zip(COLUMNS, row, strict=True))
    row_id = columns["id"]
    try:
        if bytes in map(type, row):
            columns |= {name: value.decode() for name, value in columns.items() if isinstance(value, bytes)}
        columns["scopes"] = parse_json(columns["scopes"])
    except (ValueError, RecursionError):
        shown = {name: _shown(value) for name, value in columns.items()}
        return unreadable(shown | {"id": _id_of(row_id)})
    columns["is_active"] = None if columns["is_active"] is None else bool(columns["is_active"])
    return decode_or_report(columns)


def _shown(value: Any) -> Any:  # noqa: ANN401  SQLite's values
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _material_of(*arguments: Any) -> str | None:  # noqa: ANN401  SQLite's values
    [ciphertext] = arguments
    return material_of(_shown(ciphertext)) if ciphertext else None


def _rewrap_parameters(rewrap: Rewrap) -> list[Any]:
    before, after = rewrap.before, rewrap.after
    return [
        *(after.access_ciphertext, after.refresh_ciphertext, after.encryption_scheme),
        json.dumps(encryption_metadata(after)),
        *(before.id, before.version, before.encryption_scheme),
        *(before.access_ciphertext, before.refresh_ciphertext or ""),
    ]
