"""The vault itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing

from app.composition.audit import build_events, open_audit
from app.composition.encryption import build_encryption
from app.composition.stores import opened_repository
from app.config.settings import Settings
from app.tokens.cipher import TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.freshness import Refresher
from app.tokens.models import StoredToken
from app.tokens.provider_rules import PROVIDER_RULES
from app.tokens.repository import TokenRepository
from app.tokens.vault import TokenVault


def build_vault(
    *,
    tokens: TokenRepository,
    cipher: TokenCipher,
    events: TokenEvents,
    refresher: Refresher | None = None,
    on_reveal: Callable[[StoredToken], None] | None = None,
) -> TokenVault:
    return TokenVault(
        tokens=tokens, cipher=cipher, events=events, rules=PROVIDER_RULES, refresher=refresher, on_reveal=on_reveal
    )


@asynccontextmanager
async def open_vault(settings: Settings) -> AsyncIterator[TokenVault]:
    """Open a vault for a script, and close it afterwards."""
    with closing(build_encryption(settings)) as encryption:
        async with opened_repository(settings) as tokens:
            audit = await open_audit(settings)
            try:
                cipher = TokenCipher(encryption=encryption.service)
                yield build_vault(tokens=tokens, cipher=cipher, events=build_events(audit))
            finally:
                await audit.close()
