"""Service keys and the JSON lists that hold them."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.tokens.models import SLUG_PATTERN

# --- Service keys: what a calling service presents, and what the vault keeps of it.

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


# --- The JSON list of service keys, as `SERVICE_KEYS_FILE` and `SERVICE_KEYS` hold it.


class KeyListError(Exception):
    """Says which entry of the list is wrong and how, never what it holds."""


class KeyEntry(BaseModel):
    """One entry of the list, as written."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    providers: Annotated[frozenset[Annotated[str, Field(pattern=SLUG_PATTERN)]], Field(min_length=1)] | None = None
    expires_at: AwareDatetime | None = None


_LIST = TypeAdapter(list[KeyEntry])


def parse_key_list(text: str | bytes) -> list[ServiceKey]:
    """Read the list, or raise `KeyListError`."""
    try:
        entries = _LIST.validate_python(json.loads(text, object_pairs_hook=_unique))
    except (ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise KeyListError("the list of service keys is not valid JSON") from None
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        unknown = first["type"] == "extra_forbidden"  # the member's name is then whatever was written
        where = ".".join(str(part) for part in first["loc"][: 1 if unknown else 2])
        what = "has a member that is not known" if unknown else first["msg"].partition(",")[0]
        raise KeyListError(f"entry {where}: {what}" if where else "the list of service keys is not a list") from None
    keys = [ServiceKey(**dict(entry)) for entry in entries]
    if len({key.sha256 for key in keys}) != len(keys):
        raise KeyListError("the same key stands in the list twice")
    return keys


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError
    return members


def render_key_list(keys: list[ServiceKey]) -> str:
    """Write the list for people: indented, without what is not set."""
    entries: list[dict[str, Any]] = [
        KeyEntry(
            service=key.service,
            sha256=key.sha256,
            scopes=key.scopes,
            providers=key.providers,
            expires_at=key.expires_at,
        ).model_dump(mode="json", exclude_none=True)
        for key in keys
    ]
    for entry in entries:
        for name in ("scopes", "providers"):
            if name in entry:
                entry[name].sort()
    return json.dumps(entries, indent=2) + "\n"
