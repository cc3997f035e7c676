"""Both secrets of a row have the scheme in its column, also after an outage or a moved alias."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from app.errors import KeyUnavailable
from app.security.encryption_service import EncryptionService
from app.security.schemes import scheme_of
from app.tokens.cipher import TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Caller, TokenId, TokenInput
from app.tokens.reveals import RevealOptions
from app.tokens.vault import TokenVault
from tests.support.security.envelopes import USER, Envelope, envelope
from tests.support.security.keys import local_strategy
from tests.support.stack.kms import Kms
from tests.support.stores.stores import Store

HERE = TokenId(USER, "google")
CALLER = Caller("tests")
EVENTS = TokenEvents(audit=NoAuditTrail())
STORED = TokenInput(access_token=SecretStr("access"), refresh_token=SecretStr("refresh"))
ROTATED = TokenInput(access_token=SecretStr("newer access"))


def _encryption(process: Envelope) -> EncryptionService:
    local = local_strategy()
    return EncryptionService(primary=process.strategy, readers=[local], fallback=local, counters=process.counters)


def _schemes(store: Store) -> set[str]:
    [row] = store.rows()
    secrets = {scheme_of(row[column]) for column in ("access_token", "refresh_token")}
    return secrets | {row["encryption_scheme"]}


async def test_a_rotation_under_the_fallback_moves_both_secrets_to_it(kms: Kms, store: Store) -> None:
    encryption = _encryption(envelope(kms, max_messages=2))  # enough for the store; decryption uses the cache
    async with store.open() as tokens:
        vault = TokenVault(tokens=tokens, cipher=TokenCipher(encryption=encryption), events=EVENTS)
        await vault.store(HERE, STORED, caller=CALLER)
        assert _schemes(store) == {f"kms:{kms.key_arn}"}
        kms.faults.down()
        await vault.rotate(HERE, ROTATED, caller=CALLER)
        assert _schemes(store) == {"local:v1"}
        revealed = await vault.reveal(HERE, caller=CALLER, options=RevealOptions(include_refresh=True))
        assert revealed.access_token.get_secret_value() == "newer access"
        assert revealed.refresh_token is not None
        assert revealed.refresh_token.get_secret_value() == "refresh"


async def test_nothing_is_written_if_the_refresh_token_does_not_open(kms: Kms, store: Store) -> None:
    writer = _encryption(envelope(kms))
    async with store.open() as tokens:
        vault = TokenVault(tokens=tokens, cipher=TokenCipher(encryption=writer), events=EVENTS)
        await vault.store(HERE, STORED, caller=CALLER)
        before = store.rows()
        cold = TokenVault(
            tokens=tokens,
            cipher=TokenCipher(encryption=_encryption(envelope(kms))),
            events=EVENTS,
        )
        kms.faults.down()
        with pytest.raises(KeyUnavailable):
            await cold.rotate(HERE, ROTATED, caller=CALLER)
        assert store.rows() == before


async def test_a_rotation_after_the_alias_moved_has_one_scheme(kms: Kms, store: Store) -> None:
    newer = kms.create_key()
    process = envelope(kms, key_id=kms.alias, previous_key_ids=[kms.key_arn, newer], max_age_seconds=300)
    encryption = EncryptionService(primary=process.strategy, counters=process.counters)
    async with store.open() as tokens:
        vault = TokenVault(tokens=tokens, cipher=TokenCipher(encryption=encryption), events=EVENTS)
        await vault.store(HERE, STORED, caller=CALLER)
        kms.move_alias(kms.alias, newer)
        process.clock.advance(301)
        await vault.rotate(HERE, ROTATED, caller=CALLER)
        assert _schemes(store) == {f"kms:{newer}"}
        revealed = await vault.reveal(HERE, caller=CALLER, options=RevealOptions(include_refresh=True))
        assert revealed.refresh_token is not None
        assert revealed.refresh_token.get_secret_value() == "refresh"
