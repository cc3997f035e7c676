"""Keyrings and encryption services over fixed master keys."""

from __future__ import annotations

from app.observability.in_memory_counters import InMemoryCounters
from app.security.context import TokenContext
from app.security.encryption_service import EncryptionService
from app.security.keyring import Keyring, decode_key_text
from app.security.legacy_formats import PulsePlanLocalReader
from app.security.local_strategy import LocalStrategy

MASTER_KEY = "I2r49LnvxzEuXyWKIAQeKDbQLoJAFh9y3K82ODPDMwA="
OTHER_MASTER_KEY = "G2ympiFuE7g6DQNYxAVTmTPcKjFSq7a5v/zXtI8l8bM="


def keyring(keys: dict[int, str] | None = None, *, primary: int | None = None, minimum: int = 1) -> Keyring:
    """Return a keyring of key texts by version; the highest version encrypts unless `primary` is given."""
    texts = keys or {1: MASTER_KEY}
    decoded = {version: decode_key_text(text) for version, text in texts.items()}
    return Keyring(max(texts) if primary is None else primary, decoded, minimum)


def local_strategy() -> LocalStrategy:
    """Return a local strategy whose root key is derived, as after the self-test at start."""
    strategy = LocalStrategy(keyring=keyring())
    strategy.seal("", TokenContext(""))
    return strategy


def service(keys: Keyring | None = None, *, legacy: bool = True) -> EncryptionService:
    """Return a service that encrypts locally; with `legacy` it also decrypts PulsePlan's formats."""
    keys = keys or keyring()
    readers = [PulsePlanLocalReader(keyring=keys)] if legacy else []
    return EncryptionService(primary=LocalStrategy(keyring=keys), readers=readers, counters=InMemoryCounters())
