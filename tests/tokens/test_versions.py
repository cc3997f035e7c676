"""Versions of a token that is deleted as soon as it was changed many times in one millisecond."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr

from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, TokenId, TokenInput
from app.tokens.vault import TokenVault
from tests.support.rewrap.stored_rows import local_encryption
from tests.support.stores.stores import SqliteStore

TOKEN_ID = TokenId("cd613e30-d8f1-4adf-91b7-584a2265b1f5", "canvas")
CALLER = Caller("test")
GIVEN = TokenInput(access_token=SecretStr("secret"))
CHANGES = 15


class _Clock:
    """Stands still until it is started."""

    def __init__(self) -> None:
        self._started_at: float | None = None

    def start(self) -> None:
        self._started_at = time.monotonic()

    def now(self) -> datetime:
        elapsed = 0.0 if self._started_at is None else time.monotonic() - self._started_at
        return datetime(2026, 11, 27, tzinfo=UTC) + timedelta(seconds=elapsed)


@pytest.mark.parametrize("how", ["delete", "erase"])
async def test_a_new_token_has_a_higher_version_than_the_deleted_one(tmp_path: Path, how: str) -> None:
    clock = _Clock()
    cipher, events = TokenCipher(encryption=local_encryption(1)), TokenEvents(audit=NoAuditTrail())
    async with SqliteStore(tmp_path / "vault.db").open() as tokens:
        vault = TokenVault(tokens=tokens, cipher=cipher, events=events, now=clock.now)
        for _ in range(CHANGES):
            await vault.store(TOKEN_ID, GIVEN, caller=CALLER)
        [deleted] = await tokens.list_for_user(TOKEN_ID.user_id)
        clock.start()
        if how == "delete":
            await vault.delete(TOKEN_ID, caller=CALLER)
        else:
            await vault.delete_for_user(TOKEN_ID.user_id, caller=CALLER)
        await vault.store(TOKEN_ID, GIVEN, caller=CALLER)
        [stored] = await tokens.list_for_user(TOKEN_ID.user_id)
    assert stored.version > deleted.version
