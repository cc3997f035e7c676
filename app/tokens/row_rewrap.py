"""The rewrap of one token, and how its row tells what became of it."""

from __future__ import annotations

from enum import Enum, auto

from app.errors import StoreError
from app.tokens import transitions
from app.tokens.cipher import TokenCipher
from app.tokens.events import Operation, TokenEvent
from app.tokens.models import Caller, Rewrap, StoredToken
from app.tokens.repository import TokenRepository


class WriteOutcome(Enum):
    """What a row says: it holds our ciphertext, is as it was before, or somebody else has changed or deleted it."""

    WRITTEN = auto()
    UNCHANGED = auto()
    OVERTAKEN = auto()


async def rewrapped(cipher: TokenCipher, token: StoredToken) -> Rewrap | None:
    """Open a token and seal it under the primary; `None` where it is there already. Raises an `EncryptionError`."""
    sealed = await cipher.reseal(token.token_id, await cipher.open(token))
    if sealed.access.scheme == token.encryption_scheme:
        return None
    return Rewrap(token, transitions.rewrapped(token, sealed))


def rewrap_event(row: StoredToken, outcome: str, detail: str | None, *, caller: Caller) -> TokenEvent:
    """Return the record of an attempt to rewrap one token; `row` is as it stands after that."""
    return TokenEvent(
        operation=Operation.REWRAP,
        user_id=row.token_id.user_id,
        token_id=row.token_id,
        scheme=row.encryption_scheme,
        encryption_method=row.encryption_method,
        outcome=outcome,
        detail=detail,
        caller=caller,
    )


def write_outcome_of(rewrap: Rewrap, row: StoredToken | None) -> WriteOutcome:
    """Tell what became of a rewrap from its row, `None` where that is gone; no ciphertext is made twice."""
    if row is not None and row.access_ciphertext == rewrap.after.access_ciphertext:
        return WriteOutcome.WRITTEN
    return WriteOutcome.UNCHANGED if row is not None and _is_still(row, rewrap.before) else WriteOutcome.OVERTAKEN


async def write_rewrap(tokens: TokenRepository, rewrap: Rewrap) -> bool:
    """Write one rewrap and return whether it is written; `False` where the row is no longer what was decrypted.

    Where the answer is lost the row is read back. Raises the `StoreError` where that leaves the outcome open: the write
    may yet arrive.
    """
    try:
        return bool(await tokens.replace_ciphertexts([rewrap]))
    except StoreError as error:
        if not error.retryable:
            raise
        fate = write_outcome_of(rewrap, await _read_back(tokens, rewrap, error))
        if fate is WriteOutcome.UNCHANGED:
            raise
        return fate is WriteOutcome.WRITTEN


async def _read_back(tokens: TokenRepository, rewrap: Rewrap, error: StoreError) -> StoredToken | None:
    try:
        return (await tokens.get_rows([rewrap.before.id])).get(rewrap.before.id)
    except StoreError:
        raise error from None


def _is_still(row: StoredToken, before: StoredToken) -> bool:
    return (row.version, row.encryption_scheme, row.access_ciphertext, row.refresh_ciphertext) == (
        before.version,
        before.encryption_scheme,
        before.access_ciphertext,
        before.refresh_ciphertext,
    )
