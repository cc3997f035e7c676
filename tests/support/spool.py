"""Refreshes that a process has left in the spool."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final
from uuid import uuid4

from pydantic import SecretStr

from app.refresh.spool import RefreshSpool
from app.tokens import transitions
from app.tokens.cipher import Binding, TokenCipher
from app.tokens.models import RefreshAnswer, StoredToken, TokenId
from tests.support.refresh import HERE, Replica
from tests.support.rewrap.stored_rows import local_encryption

NEW_ACCESS: Final = "access-of-the-spool"
NEW_REFRESH: Final = "refresh-of-the-spool"
INTENT: Final = "0123456789abcdef"


class Crash(Exception):
    """The end of a process, as far as the spool can tell."""


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A refresh whose new tokens are in the spool alone."""

    claimed: StoredToken
    after: StoredToken
    file: Path


async def refreshed_row(
    replica: Replica, token_id: TokenId = HERE, *, key_version: int = 1
) -> tuple[StoredToken, StoredToken]:
    """Claim a token as a refresh does; return its row, and the same row with new tokens, which is not written."""
    row, holder = await replica.row(token_id), str(uuid4())
    assert await replica.tokens.claim_refresh(row, holder=holder, lease_seconds=600)
    claimed, now = transitions.claimed(row, holder), replica.clock()
    cipher = TokenCipher(encryption=local_encryption(key_version))
    sealed = await cipher.seal(Binding.of(row), SecretStr(NEW_ACCESS), SecretStr(NEW_REFRESH))
    answer = RefreshAnswer(expires_at=now + timedelta(hours=1), scopes=("calendar",))
    return claimed, transitions.refreshed(claimed, answer, sealed, now=now)


async def left_in_spool(
    replica: Replica, directory: Path, token_id: TokenId = HERE, *, key_version: int = 1
) -> Unwritten:
    """Claim a token, keep its new tokens in the spool, and end as a crash would."""
    claimed, after = await refreshed_row(replica, token_id, key_version=key_version)
    with suppress(Crash):
        async with RefreshSpool(directory).kept(claimed, after, intent=INTENT):
            raise Crash
    return Unwritten(claimed, after, directory / f"{claimed.refresh_state.holder}.refresh")
