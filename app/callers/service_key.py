"""Service keys: what a calling service presents, and what the vault keeps of it."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

PREFIX = "ptv_"
_RANDOM_BYTES = 32
_KEY = re.compile(r"ptv_[A-Za-z0-9_-]{43}")
FINGERPRINT_CHARACTERS = 12


class Scope(StrEnum):
    """What a service may do."""

    READ = "tokens:read"
    REVEAL = "tokens:reveal"
    REVEAL_REFRESH = "tokens:reveal_refresh"
    WRITE = "tokens:write"
    DELETE = "tokens:delete"
    ADMIN = "tokens:admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey:
    """One configured key. Only the SHA-256 of the key is known, in lower-case hex; `providers` `None` means all."""

    service: str
    sha256: str
    scopes: frozenset[Scope]
    providers: frozenset[str] | None = None
    expires_at: datetime | None = None

    @property
    def fingerprint(self) -> str:
        """Enough of the hash to name the key to an operator, useless for presenting it."""
        return self.sha256[:FINGERPRINT_CHARACTERS]

    def is_alive(self, now: datetime | None = None) -> bool:
        return self.expires_at is None or (now or datetime.now(UTC)) < self.expires_at

    def may_use(self, provider: str) -> bool:
        return self.providers is None or provider in self.providers


def generate_key() -> str:
    """Return a new key: `ptv_` and 32 random bytes as 43 base64url characters."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def is_well_formed(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def hash_key(key: str) -> str:
    """Return the SHA-256 as it is configured. The key has 256 random bits, so no salt or stretching is needed."""
    return hashlib.sha256(key.encode()).hexdigest()
