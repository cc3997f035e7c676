"""Columns that do not decode, as a program with write access to the table can leave them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from tests.support.stores.stores import SqliteStore, Store, SupabaseStore, sqlite_connection

DEEP: Final = '{"a":' * 3_000 + "1" + "}" * 3_000
_BOTH: Final[dict[str, tuple[str, object]]] = {
    "metadata nested 3 000 deep": ("metadata", DEEP),
    "metadata deeper than an answer can be": ("metadata", '{"a":' * 300 + "1" + "}" * 300),
    "a number beyond a double": ("metadata", '{"a": 1' + "0" * 400 + ".5}"),
    "a number of 5 000 digits": ("metadata", '{"a": 1' + "0" * 5_000 + "}"),
    "the last version": ("version", 2**63 - 1),
}
_SQLITE: Final[dict[str, tuple[str, object]]] = {
    "JSON that does not end": ("metadata", "{"),
    "a lone surrogate": ("metadata", '{"a": "\\ud800"}'),
    "an exponent beyond a double": ("metadata", '{"a": -1e400}'),
    "NaN": ("metadata", '{"a": NaN}'),
    "text that is not UTF-8": ("email", b"a\xff"),
    "a scheme that is not UTF-8": ("encryption_scheme", b"local:\xff"),
    "metadata that is not UTF-8": ("metadata", b'{"a": "\xff"}'),
    "scopes nested 3 000 deep": ("scopes", "[" * 3_000 + "]" * 3_000),
    "scopes that are no list": ("scopes", '{"a": 1}'),
    "a time that is none": ("expires_at", "never"),
    "a time outside of Python's years in UTC": ("created_at", "0001-01-01T00:00:00+14:00"),
}
_POSTGRES: Final[dict[str, tuple[str, object]]] = {
    "scopes in scopes": ("scopes", "{{a},{b}}"),
    "a scope that is null": ("scopes", "{a,null}"),
}
_POSTGRES_TYPES: Final = {"metadata": "jsonb", "version": "bigint", "scopes": "text[]"}


def damages_of(store: Store) -> Mapping[str, tuple[str, object]]:
    """Return pairs of column and value that do not decode, by name."""
    return _BOTH | (_SQLITE if isinstance(store, SqliteStore) else _POSTGRES)


def damage(store: Store, user_id: str, provider: str, column: str, value: object) -> None:
    """Write a column of one row past the vault."""
    if isinstance(store, SupabaseStore):
        store.stack.sql(
            f"update public.oauth_tokens set {column} = %s::{_POSTGRES_TYPES[column]} "  # noqa: S608  columns of a test
            "where user_id = %s and provider = %s",
            [value, user_id, provider],
        )
        return
    assert isinstance(store, SqliteStore)
    connection = sqlite_connection(store.path)
    given = "CAST(? AS TEXT)" if isinstance(value, bytes) else "?"
    connection.execute(
        f"UPDATE oauth_tokens SET {column} = {given} WHERE user_id = ? AND provider = ?",  # noqa: S608  columns of a test
        (value, user_id, provider),
    )
    connection.close()
