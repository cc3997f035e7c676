"""A token as columns and back: the one mapping that every store shares.

A row here is a mapping of column names to JSON-like values, as PostgREST speaks them: timestamps are RFC 3339 text,
`scopes` a list, `metadata` an object.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from app.errors import StoreMisconfigured
from app.tokens.models import RESERVED_METADATA, StoredToken, TokenId, TokenStatus

_BEYOND_PYTHON = re.compile(r"[0-9]{5,6}-")
COLUMNS = (
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
)


def to_columns(token: StoredToken) -> dict[str, Any]:
    """Return every column of a row."""
    return {
        "id": token.id,
        "user_id": token.token_id.user_id,
        "provider": token.token_id.provider,
        "service_type": token.token_id.service_type,
        "access_token": token.access_ciphertext,
        "refresh_token": token.refresh_ciphertext,
        "expires_at": _to_text(token.expires_at),
        "scopes": list(token.scopes),
        "email": token.email,
        "provider_url": token.base_url,
        "is_active": token.status is TokenStatus.OK,
        "metadata": _to_metadata(token),
        "version": token.version,
        "encryption_scheme": token.encryption_scheme,
        "created_at": _to_text(token.created_at),
        "updated_at": _to_text(token.updated_at),
        "last_refreshed": _to_text(token.last_refreshed),
    }


def changed_columns(before: StoredToken, after: StoredToken) -> dict[str, Any]:
    """Return the columns in which two states of one row differ.

    A write that touches no secret thus leaves the secret columns alone, even where something that does not know
    about versions wrote them meanwhile.
    """
    old = to_columns(before)
    return {name: value for name, value in to_columns(after).items() if value != old[name]}


def encryption_metadata(token: StoredToken) -> dict[str, Any]:
    """Return what metadata says about the encryption, `None` for what it then does not hold."""
    return {
        "encryption_method": token.encryption_method,
        "kms_key_id": token.kms_key_id,
        "encryption_fallback": token.encryption_fallback or None,
    }


def from_columns(row: Mapping[str, Any]) -> StoredToken:
    """Read a row that the vault or PulsePlan wrote; raise `StoreMisconfigured` where a column is not what it must be.

    PulsePlan wrote an empty `refresh_token` for "none", may have switched `is_active` off without a status, and left
    `metadata` without the vault's keys.
    """
    try:
        metadata = dict(row["metadata"]) if isinstance(row["metadata"], dict) else {}
        vaults = {key: metadata.pop(key, None) for key in RESERVED_METADATA}
        return StoredToken(
            id=row["id"],
            token_id=TokenId(row["user_id"], row["provider"], row["service_type"]),
            access_ciphertext=row["access_token"],
            refresh_ciphertext=row["refresh_token"] or None,
            encryption_scheme=row["encryption_scheme"],
            encryption_method=_text_or_none(vaults["encryption_method"]),
            kms_key_id=_text_or_none(vaults["kms_key_id"]),
            encryption_fallback=vaults["encryption_fallback"] is True,
            status=_status(vaults["status"], is_active=row["is_active"]),
            status_reason=_text_or_none(vaults["status_reason"]),
            expires_at=_to_time(row["expires_at"]),
            scopes=tuple(row["scopes"] or ()),
            email=row["email"],
            base_url=_text_or_none(vaults["base_url"]) or row["provider_url"],
            metadata=metadata,
            version=row["version"],
            created_at=_to_time(row["created_at"]),
            updated_at=_to_time(row["updated_at"]),
            last_refreshed=_to_time(row["last_refreshed"]),
        )
    except (KeyError, TypeError, ValueError):
        raise StoreMisconfigured(
            "a row of oauth_tokens does not have the columns or types that the vault needs"
        ) from None  # the library's text would quote the row


def _to_metadata(token: StoredToken) -> dict[str, Any]:
    vaults = {
        "base_url": token.base_url,
        "status": token.status.value,
        "status_reason": token.status_reason,
        **encryption_metadata(token),
    }
    return {**token.metadata, **{key: value for key, value in vaults.items() if value is not None}}


def _status(status: object, *, is_active: object) -> TokenStatus:
    """Believe the more cautious of the two columns; an unknown status is an error."""
    if status is None:
        return TokenStatus.NEEDS_REAUTH if is_active is False else TokenStatus.OK
    try:
        known = TokenStatus(str(status))
    except ValueError:
        return TokenStatus.ERROR
    return TokenStatus.NEEDS_REAUTH if known is TokenStatus.OK and is_active is False else known


def _text_or_none(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _to_text(time: datetime | None) -> str | None:
    return None if time is None else time.astimezone(UTC).isoformat()


def _to_time(text: str | None) -> datetime | None:
    """Read a time. PostgreSQL's reach beyond Python's years 1 to 9999, and one such row must not hide the others."""
    if text is None or text == "infinity":
        return None
    if text == "-infinity" or text.endswith("BC"):
        return datetime.min.replace(tzinfo=UTC)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        if _BEYOND_PYTHON.match(text):
            return None
        raise
