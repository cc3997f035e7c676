"""The rewrap of one row: prepare it, write it, and find out its outcome."""

from __future__ import annotations

from enum import Enum, auto

from app.errors import StoreError
from app.security.formats import families_of
from app.tokens import transitions
from app.tokens.cipher import Binding, TokenCipher
from app.tokens.events import Operation, TokenEvent
from app.tokens.legacy_rows import require_own_secrets
from app.tokens.models import Caller, Rewrap, StoredToken, TokenRow
from app.tokens.repository import TokenRepository


class WriteOutcome(Enum):
    """Outcome of a rewrap, as its row shows it: the new ciphertext, no change, or somebody else's change."""

    WRITTEN = auto()
    UNCHANGED = auto()
    OVERTAKEN = auto()


async def prepare_rewrap(tokens: TokenRepository, cipher: TokenCipher, token: StoredToken) -> Rewrap | None:
    """Decrypt a token and encrypt it under the primary; `None` if it is already.

    Raises an `EncryptionError`, also for a legacy row whose ciphertext stands in another place too.
    """
    await require_own_secrets(tokens, token)
    sealed = await cipher.seal_as_primary(Binding.of(token), await cipher.open(token))
    if sealed.access.scheme == token.encryption_scheme:
        return None
    return Rewrap(token, transitions.rewrapped(token, sealed))


async def write_rewrap(tokens: TokenRepository, rewrap: Rewrap) -> bool:
    """Write one rewrap; return `False` if the row is no longer what was decrypted.

    If the answer is lost the row is read back. Raises the `StoreError` if that leaves the outcome open: the write may
    still arrive.
    """
    try:
        return bool(await tokens.replace_ciphertexts([rewrap]))
    except StoreError as error:
        if not error.retryable:
            raise
        outcome = write_outcome_of(rewrap, await _read_back(tokens, rewrap, error))
        if outcome is WriteOutcome.UNCHANGED:
            raise
        return outcome is WriteOutcome.WRITTEN


def write_outcome_of(rewrap: Rewrap, row: TokenRow | None) -> WriteOutcome:
    """Compare a row, `None` if it is gone, with the rewrap that was sent. No ciphertext is ever made twice."""
    if not isinstance(row, StoredToken):
        return WriteOutcome.OVERTAKEN
    if row.access_ciphertext == rewrap.after.access_ciphertext:
        return WriteOutcome.WRITTEN
    return WriteOutcome.UNCHANGED if _is_same(row, rewrap.before) else WriteOutcome.OVERTAKEN


def rewrap_event(
    row: StoredToken, outcome: str, detail: str | None, *, caller: Caller, before: StoredToken | None = None
) -> TokenEvent:
    """Return the audit event of one row's rewrap; `row` is as it stands afterwards, `before` if it was decrypted."""
    return TokenEvent(
        operation=Operation.REWRAP,
        user_id=row.token_id.user_id,
        token_id=row.token_id,
        opened=() if before is None else families_of(before.access_ciphertext, before.refresh_ciphertext),
        scheme=row.encryption_scheme,
        encryption_method=row.encryption_method,
        outcome=outcome,
        detail=detail,
        caller=caller,
    )


async def _read_back(tokens: TokenRepository, rewrap: Rewrap, error: StoreError) -> TokenRow | None:
    try:
        return (await tokens.read_back([rewrap.before.id])).get(rewrap.before.id)
    except StoreError:
        raise error from None


def _is_same(row: StoredToken, before: StoredToken) -> bool:
    return (row.version, row.encryption_scheme, row.access_ciphertext, row.refresh_ciphertext) == (
        before.version,
        before.encryption_scheme,
        before.access_ciphertext,
        before.refresh_ciphertext,
    )
