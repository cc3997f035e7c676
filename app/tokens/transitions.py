"""The next row of a token, from its current row and the caller's input. Pure: no clock, no store, no key."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

from app.errors import InvalidRequest
from app.tokens.cipher import SealedSecrets
from app.tokens.models import (
    ANSWER_LOST,
    LAST_VERSION,
    NO_REFRESH,
    RESERVED_METADATA,
    UNSET,
    RefreshAnswer,
    RefreshState,
    StoredToken,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenRow,
    TokenStatus,
    Unset,
    is_uuid,
)

T = TypeVar("T")
MAXIMUM_METADATA_BYTES = 8 * 1024
IN_FLIGHT_SECONDS = 15  # after a rotation, for a refresh in progress to bring the successor of the refresh token
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def stored(
    current: TokenRow | None, token_id: TokenId, given: TokenInput, sealed: SealedSecrets, *, now: datetime
) -> StoredToken:
    """Return the row of a stored token. A token that it replaces passes on its id, and `created_at` if it decodes.

    An unreadable row whose id is no UUID gets a new id, because the id may be what does not decode.
    """
    keeps_id = isinstance(current, StoredToken) or (current is not None and is_uuid(current.id))
    return StoredToken(
        id=current.id if current is not None and keeps_id else str(uuid4()),
        token_id=token_id,
        access_ciphertext=sealed.access.ciphertext,
        refresh_ciphertext=None if sealed.refresh is None else sealed.refresh.ciphertext,
        encryption_scheme=sealed.access.scheme,
        encryption_method=sealed.access.method,
        kms_key_id=sealed.access.key_id,
        encryption_fallback=sealed.access.fallback,
        status=TokenStatus.OK,
        status_reason=None,
        expires_at=given_or(given.expires_at, None),
        scopes=given_or(given.scopes, ()),
        email=given_or(given.email, None),
        base_url=given_or(given.base_url, None),
        metadata=checked_metadata(given_or(given.metadata, {})),
        version=_next_version(current, now),
        created_at=current.created_at if isinstance(current, StoredToken) else now,
        updated_at=now,
        last_refreshed=now,
        refresh_state=_released(current) if isinstance(current, StoredToken) else NO_REFRESH,
    )


def first_version(now: datetime) -> int:
    """Return the version of a row created now: the milliseconds since 1970.

    So the version of a deleted token, its ETag, does not come again while clocks agree and do not step back.
    """
    return (now - _EPOCH) // timedelta(milliseconds=1)


def _next_version(current: TokenRow | None, now: datetime) -> int:
    if current is None or not 0 <= current.version < LAST_VERSION:  # another program may have written any number
        return first_version(now)
    return current.version + 1


def rotated(current: StoredToken, given: TokenInput, sealed: SealedSecrets, *, now: datetime) -> StoredToken:
    """Return the row with new secrets; values that are UNSET stay.

    `sealed.refresh` is `None` if the refresh token's ciphertext stays, or if there is no refresh token any more.
    A refresh token that stays may still have a successor that the row does not hold. A refresh that may be in progress
    has some seconds to bring it, before the next one may spend the token again. Another rotation does not end them.
    """
    kept, state, lease = kept_refresh(current, given), current.refresh_state, _released(current)
    if kept is not None and state.may_have_successor:
        in_flight = now + timedelta(seconds=IN_FLIGHT_SECONDS)
        retry_at = in_flight if state.is_refreshing else state.retry_at
        lease = replace(lease, failure=ANSWER_LOST, retry_at=retry_at)
    return replace(
        current,
        access_ciphertext=sealed.access.ciphertext,
        refresh_ciphertext=sealed.refresh.ciphertext if sealed.refresh else kept,
        encryption_scheme=sealed.access.scheme,
        encryption_method=sealed.access.method,
        kms_key_id=sealed.access.key_id,
        encryption_fallback=sealed.access.fallback,
        expires_at=given_or(given.expires_at, current.expires_at),
        scopes=given_or(given.scopes, current.scopes),
        email=given_or(given.email, current.email),
        base_url=given_or(given.base_url, current.base_url),
        metadata=current.metadata if isinstance(given.metadata, Unset) else checked_metadata(given.metadata),
        version=current.version + 1,
        updated_at=now,
        last_refreshed=now,
        refresh_token_expires_at=current.refresh_token_expires_at if kept else None,
        refresh_state=lease,
    )


def kept_refresh(current: StoredToken, given: TokenInput) -> str | None:
    """Return the ciphertext of the refresh token that a rotation keeps, `None` if it keeps none.

    A refresh token does not follow another base URL: a caller with `tokens:write` alone could redirect it.
    """
    moves = given.base_url is not UNSET and given.base_url != current.base_url
    return None if moves or given.refresh_token is not UNSET else current.refresh_ciphertext


def rewrapped(current: StoredToken, sealed: SealedSecrets) -> StoredToken:
    """Return the row with other ciphertexts of its secrets, at the same version."""
    return replace(
        current,
        access_ciphertext=sealed.access.ciphertext,
        refresh_ciphertext=None if sealed.refresh is None else sealed.refresh.ciphertext,
        encryption_scheme=sealed.access.scheme,
        encryption_method=sealed.access.method,
        kms_key_id=sealed.access.key_id,
        encryption_fallback=sealed.access.fallback,
    )


def patched(current: StoredToken, changes: TokenPatch, *, now: datetime) -> StoredToken:
    """Return the row with another status or metadata. A new status clears the old reason unless a new one is given."""
    status, reason = current.status, current.status_reason
    if not isinstance(changes.status, Unset):
        status, reason = changes.status, changes.status_reason
    return replace(
        current,
        status=status,
        status_reason=reason,
        metadata=_merged(current.metadata, changes.metadata),
        version=current.version + 1,
        updated_at=now,
    )


def claimed(current: StoredToken, holder: str) -> StoredToken:
    """Return the row as a claim leaves it: with the next generation, held by `holder`."""
    state = replace(current.refresh_state, generation=current.refresh_state.generation + 1, holder=holder)
    return replace(current, refresh_state=state)


def refresh_released(claimed: StoredToken, *, failure: str | None, retry_at: datetime | None = None) -> StoredToken:
    """Return the row after a refresh that says nothing about the token: as it was, without a holder.

    A `retry_at` that the row has and that is later stays.
    """
    state = claimed.refresh_state
    latest = max((time for time in (state.retry_at, retry_at) if time is not None), default=None)
    return replace(claimed, refresh_state=replace(state, holder=None, failure=failure, retry_at=latest))


def refreshed(claimed: StoredToken, answer: RefreshAnswer, sealed: SealedSecrets, *, now: datetime) -> StoredToken:
    """Return the row with the provider's new tokens; its status, metadata and what the answer leaves out stay."""
    return replace(
        rewrapped(claimed, sealed),
        expires_at=answer.expires_at,
        refresh_token_expires_at=answer.refresh_token_expires_at or claimed.refresh_token_expires_at,
        scopes=claimed.scopes if answer.scopes is None else answer.scopes,
        version=claimed.version + 1,
        updated_at=now,
        last_refreshed=now,
        refresh_state=replace(_released(claimed), retry_at=answer.next_refresh_at),
    )


def refresh_token_replaced(
    current: StoredToken, sealed: SealedSecrets, *, expires_at: datetime | None, now: datetime
) -> StoredToken:
    """Return the row with the successor of its refresh token, and its access token as it is."""
    return replace(
        rewrapped(current, sealed),
        refresh_token_expires_at=expires_at,
        version=current.version + 1,
        updated_at=now,
        refresh_state=_released(current),
    )


def refresh_failed(claimed: StoredToken, failure: str, *, retry_at: datetime | None) -> StoredToken:
    """Return the row after a refresh that may succeed later; the token does not change."""
    state = _released(claimed)
    attempts = claimed.refresh_state.attempts + 1
    return replace(claimed, refresh_state=replace(state, attempts=attempts, retry_at=retry_at, failure=failure))


def reauthentication_needed(claimed: StoredToken, reason: str, *, now: datetime) -> StoredToken:
    """Return the row of a token whose refresh token the provider refuses: the user must sign in again."""
    return replace(
        claimed,
        status=TokenStatus.NEEDS_REAUTH,
        status_reason=reason,
        version=claimed.version + 1,
        updated_at=now,
        refresh_state=replace(_released(claimed), failure=reason),
    )


def marked_revoked(current: StoredToken, reason: str, *, now: datetime) -> StoredToken:
    """Return the row of a token that its provider has revoked, wholly or in part."""
    return replace(
        current, status=TokenStatus.REVOKED, status_reason=reason, version=current.version + 1, updated_at=now
    )


def _released(current: StoredToken) -> RefreshState:
    return RefreshState(generation=current.refresh_state.generation)


def given_or(value: T | Unset, otherwise: T) -> T:
    """Return the caller's value, or `otherwise` if it is UNSET."""
    return otherwise if isinstance(value, Unset) else value


def _merged(current: Mapping[str, Any], changes: Mapping[str, Any] | Unset) -> Mapping[str, Any]:
    if isinstance(changes, Unset):
        return current
    _refuse_reserved(changes)
    merged = {key: value for key, value in {**current, **changes}.items() if value is not None}
    # a row of PulsePlan's may be over the limit; a patch that does not enlarge it is allowed
    return merged if _size(merged) <= _size(current) else checked_metadata(merged)


def checked_metadata(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the caller's metadata; raise `InvalidRequest` if it is too large or has a key of the vault's."""
    _refuse_reserved(metadata)
    if _size(metadata) > MAXIMUM_METADATA_BYTES:
        raise InvalidRequest.of_field("metadata", "metadata is over 8 KiB as compact JSON")
    return metadata


def _size(metadata: Mapping[str, Any]) -> int:
    return len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())


def _refuse_reserved(metadata: Mapping[str, Any]) -> None:
    if not RESERVED_METADATA.isdisjoint(metadata):
        raise InvalidRequest.of_field(
            "metadata", f"the vault sets these keys itself: {', '.join(sorted(RESERVED_METADATA))}"
        )
