"""The mapping between a token and the columns of its row, shared by every store.

A row is a mapping of column names to JSON values as PostgREST sends them: timestamps are RFC 3339 text, `scopes` is a
list. `metadata` is written as an object and read as JSON text, so that each row's is parsed on its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from app.errors import InvalidRequest, StoreMisconfigured
from app.security.schemes import is_comparable
from app.strict_json import finite, refuse_constant, require_depth
from app.tokens.due_tokens import DueBy, DuePage, DuePosition
from app.tokens.models import (
    LAST_VERSION,
    NO_REFRESH,
    RefreshState,
    Rewrap,
    StoredToken,
    TokenId,
    TokenRow,
    TokenStatus,
    UnreadableRow,
    is_uuid,
)

MAXIMUM_DEPTH: Final = 64  # of JSON in a column; requests have half of it, and answers can be written
_MANY_ATTEMPTS: Final = 2**31 - 1
_YEAR_ABOVE_9999: Final = re.compile(r"[0-9]{5,6}-")
_UNREADABLE: Final = "the row of this token does not decode: PUT replaces it, DELETE deletes it"
COLUMNS: Final = (
    "id",
    "user_id",
    "provider",
    "service_type",
    "access_token",
    "refresh_token",
    "expires_at",
    "scopes",
    "email",
    "provider_url",
    "is_active",
    "metadata",
    "version",
    "encryption_scheme",
    "created_at",
    "updated_at",
    "last_refreshed",
    "refresh_token_expires_at",
    "refresh_generation",
    "refresh_holder",
    "refresh_attempts",
    "refresh_retry_at",
    "refresh_failure",
)


def to_columns(token: StoredToken) -> dict[str, Any]:
    return {
        "id": token.id,
        "user_id": token.token_id.user_id,
        "provider": token.token_id.provider,
        "service_type": token.token_id.service_type,
        "access_token": token.access_ciphertext,
        "refresh_token": token.refresh_ciphertext,
        "expires_at": to_text(token.expires_at),
        "scopes": list(token.scopes),
        "email": token.email,
        "provider_url": token.base_url,
        "is_active": token.status is TokenStatus.OK,
        "metadata": _to_metadata(token),
        "version": token.version,
        "encryption_scheme": token.encryption_scheme,
        "created_at": to_text(token.created_at),
        "updated_at": to_text(token.updated_at),
        "last_refreshed": to_text(token.last_refreshed),
        "refresh_token_expires_at": to_text(token.refresh_token_expires_at),
        "refresh_generation": token.refresh_state.generation,
        "refresh_holder": token.refresh_state.holder,
        "refresh_attempts": token.refresh_state.attempts,
        "refresh_retry_at": to_text(token.refresh_state.retry_at),
        "refresh_failure": token.refresh_state.failure,
    }


def changed_columns(before: TokenRow, after: StoredToken) -> dict[str, Any]:
    """Return the columns in which two states of one row differ, with their new values.

    If the row before is unreadable, every column but `id` differs.

    A write that changes no secret therefore leaves the secret columns alone, even if a program that does not raise
    `version` has changed them since `before` was read.
    """
    old = to_columns(before) if isinstance(before, StoredToken) else {"id": before.id}
    return {name: value for name, value in to_columns(after).items() if name not in old or value != old[name]}


def generation_to_keep(before: TokenRow, columns: Mapping[str, Any]) -> int | None:
    """Return the generation that a row must still have for a write of these columns; `None` if it may have any.

    A claim raises it, but not the version. A write of secrets ends the lease, so it must know of the claim: the refresh
    token that it keeps may be spent.
    """
    return before.refresh_state.generation if isinstance(before, StoredToken) and "access_token" in columns else None


@dataclass(frozen=True, slots=True)
class SettledColumns:
    """The end of a refresh as a store writes it: the lease ends, and the version is one higher if `raises_version`.

    `columns` have new values. In `metadata` a value of `None` removes its key, and every other key stays.
    """

    columns: dict[str, Any]
    metadata: dict[str, Any]
    raises_version: bool


def require_uuid(row_id: str | None) -> str | None:
    """Return the id of a row of PostgreSQL, or raise `InvalidRequest`."""
    if row_id is not None and not is_uuid(row_id):
        raise InvalidRequest.of_field("cursor", "cursor must come from an answer of this vault")
    return row_id


def refresh_claim(token: StoredToken, *, holder: str, lease_seconds: int) -> dict[str, Any]:
    """Return the argument of `token_vault_claim_refresh()` in migration 0005."""
    return {
        "id": token.id,
        "version": token.version,
        "scheme": token.encryption_scheme,
        "generation": token.refresh_state.generation,
        "old_holder": token.refresh_state.holder,
        "holder": holder,
        "lease_seconds": lease_seconds,
    }


def refresh_settlement(claimed: StoredToken, after: StoredToken) -> dict[str, Any]:
    """Return the argument of `token_vault_settle_refresh()` in migration 0005."""
    settled = settled_columns(claimed, after)
    return {
        "id": claimed.id,
        "holder": claimed.refresh_state.holder,
        "generation": claimed.refresh_state.generation,
        "columns": settled.columns,
        "metadata": settled.metadata,
        "raises_version": settled.raises_version,
    }


def settled_columns(claimed: StoredToken, after: StoredToken) -> SettledColumns:
    """Return the columns in which a claimed row and the same row after its refresh differ."""
    columns = changed_columns(claimed, after)
    for name in ("metadata", "version", "refresh_holder"):
        columns.pop(name, None)
    old, new = _vaults_metadata(claimed), _vaults_metadata(after)
    metadata = {name: value for name, value in new.items() if value != old[name]}
    if "access_token" in columns:  # a rewrap may have put the row under another key since the claim
        given = to_columns(after)
        columns |= {name: given[name] for name in ("refresh_token", "encryption_scheme")}
        metadata |= encryption_metadata(after)
    return SettledColumns(
        columns,
        metadata,
        raises_version=after.version != claimed.version,
    )


def encryption_metadata(token: StoredToken) -> dict[str, Any]:
    """Return the keys of `metadata` that describe the encryption; `None` marks a key to leave out."""
    return {
        "encryption_method": token.encryption_method,
        "kms_key_id": token.kms_key_id,
        "encryption_fallback": token.encryption_fallback or None,
    }


def rewrap_columns(rewrap: Rewrap) -> dict[str, Any]:
    """Return one element of the argument of `token_vault_replace_ciphertexts()` in migration 0003."""
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


def from_columns(row: Mapping[str, Any]) -> StoredToken:
    """Decode a row that the vault or PulsePlan wrote; raise `StoreMisconfigured` if a column does not decode.

    PulsePlan wrote an empty `refresh_token` for "none", may have set `is_active` to false without a status, and did
    not write the vault's keys of `metadata`.
    """
    try:
        metadata = parse_json(row["metadata"])
        metadata = metadata if isinstance(metadata, dict) else {}
        take = metadata.pop  # the keys of RESERVED_METADATA
        return StoredToken(
            id=row["id"],
            token_id=TokenId(row["user_id"], row["provider"], row["service_type"]),
            access_ciphertext=row["access_token"],
            refresh_ciphertext=row["refresh_token"] or None,
            encryption_scheme=_scheme(row["encryption_scheme"]),
            encryption_method=_text_or_none(take("encryption_method", None)),
            kms_key_id=_text_or_none(take("kms_key_id", None)),
            encryption_fallback=take("encryption_fallback", None) is True,
            status=_status(take("status", None), is_active=row["is_active"]),
            status_reason=_text_or_none(take("status_reason", None)),
            expires_at=_to_time(row["expires_at"]),
            scopes=_scopes(row["scopes"]),
            email=row["email"],
            base_url=_text_or_none(take("base_url", None)) or row["provider_url"] or None,
            metadata=metadata,
            version=_version(row["version"]),
            created_at=_to_time(row["created_at"]),
            updated_at=_to_time(row["updated_at"]),
            last_refreshed=_to_time(row["last_refreshed"]),
            refresh_token_expires_at=_to_time(row["refresh_token_expires_at"]),
            refresh_state=_refresh_state(row),
        )
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        raise StoreMisconfigured(_UNREADABLE) from None  # the original message quotes the row


def decode_or_report(row: Mapping[str, Any]) -> TokenRow:
    """Decode a row; one that does not decode is reported, so that it does not fail a read of others."""
    try:
        return from_columns(row)
    except StoreMisconfigured:
        return unreadable(row)


def due_page(rows: Sequence[Mapping[str, Any]], by: DueBy) -> DuePage:
    """Decode a page of due tokens, in their order; rows that do not decode are left out."""
    tokens = [row for row in map(decode_or_report, rows) if isinstance(row, StoredToken)]
    return DuePage(tokens, DuePosition(rows[-1][by.column], rows[-1]["id"]) if rows else None)


def unreadable(row: Mapping[str, Any]) -> UnreadableRow:
    """Return the report of a row that does not decode; raise `StoreMisconfigured` if columns are missing."""
    try:
        token_id = TokenId(row["user_id"], row["provider"], row["service_type"])
        return UnreadableRow(row["id"], token_id, row["version"], _UNREADABLE)
    except KeyError:
        raise StoreMisconfigured("oauth_tokens lacks columns that the vault needs") from None


def parse_json(text: str | None) -> Any:  # noqa: ANN401  JSON
    """Return the value of a JSON column, `None` if it has none.

    Raises `ValueError` or `RecursionError` if it is not strict JSON, or if an answer could not repeat it because of
    numbers beyond a double, lone surrogates, or more than 64 levels of nesting.
    """
    if text is None:
        return None
    if text == "[]":  # the scopes of most rows
        return []
    value = _STRICT_JSON.decode(text)
    if text.count("[") + text.count("{") > MAXIMUM_DEPTH:
        require_depth(value, levels=MAXIMUM_DEPTH)
    if "\\u" in text:
        json.dumps(value, ensure_ascii=False).encode()  # raises for a lone surrogate
    return value


def _to_metadata(token: StoredToken) -> dict[str, Any]:
    return {**token.metadata, **{key: value for key, value in _vaults_metadata(token).items() if value is not None}}


def _vaults_metadata(token: StoredToken) -> dict[str, Any]:
    return {
        "base_url": token.base_url,
        "status": token.status.value,
        "status_reason": token.status_reason,
        **encryption_metadata(token),
    }


def _refresh_state(row: Mapping[str, Any]) -> RefreshState:
    generation, attempts = row["refresh_generation"], row["refresh_attempts"]
    rest = row["refresh_holder"], row["refresh_retry_at"], row["refresh_failure"]
    if generation == 0 and attempts == 0 and rest == (None, None, None):  # as in most rows that are read
        return NO_REFRESH
    if not 0 <= generation < LAST_VERSION or not 0 <= attempts < _MANY_ATTEMPTS:
        raise ValueError
    retry_at = _to_time(row["refresh_retry_at"])
    return RefreshState(generation, row["refresh_holder"], attempts, retry_at, row["refresh_failure"])


def _status(status: object, *, is_active: object) -> TokenStatus:
    """Combine two columns that may contradict each other: the more cautious one wins; an unknown status is ERROR."""
    if status is None:
        return TokenStatus.NEEDS_REAUTH if is_active is False else TokenStatus.OK
    try:
        known = TokenStatus(str(status))
    except ValueError:
        return TokenStatus.ERROR
    return TokenStatus.NEEDS_REAUTH if known is TokenStatus.OK and is_active is False else known


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _scopes(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(scope, str) for scope in value):
        raise TypeError
    return tuple(value)


def _scheme(value: str | None) -> str | None:
    if value is not None and not is_comparable(value):
        raise ValueError
    return value


def _version(value: int) -> int:
    if not 0 <= value < LAST_VERSION:
        raise ValueError
    return value


# built once: `json.loads` with options builds one for each call
_STRICT_JSON: Final = json.JSONDecoder(parse_constant=refuse_constant, parse_float=finite)


def to_text(time: datetime | None) -> str | None:
    """Return the RFC 3339 text of a timestamp in UTC."""
    return None if time is None else time.astimezone(UTC).isoformat()


def _to_time(text: str | None) -> datetime | None:
    """Parse a timestamp. PostgreSQL's range exceeds Python's years 1 to 9999: above is `None`, below the minimum."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
        return time if time.tzinfo is UTC else time.astimezone(UTC)
    except ValueError:
        if text == "infinity" or _YEAR_ABOVE_9999.match(text):
            return None
        if text == "-infinity" or text.endswith("BC"):
            return datetime.min.replace(tzinfo=UTC)
        raise
