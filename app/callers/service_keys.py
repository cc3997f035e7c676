"""Service keys, and the JSON list that `SERVICE_KEYS_FILE` and `SERVICE_KEYS` hold."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from app.strict_json import unique_members
from app.tokens.models import SLUG_PATTERN

PREFIX = "ptv_"
_RANDOM_BYTES = 32
_KEY = re.compile(r"ptv_[A-Za-z0-9_-]{43}")
FINGERPRINT_CHARACTERS = 12


class Scope(StrEnum):
    """Permission of a service key."""

    __hash__ = str.__hash__  # Enum's is a function in Python, and each request looks for its scope

    READ = "tokens:read"
    REVEAL = "tokens:reveal"
    REVEAL_REFRESH = "tokens:reveal_refresh"
    WRITE = "tokens:write"
    REFRESH = "tokens:refresh"
    DELETE = "tokens:delete"
    ADMIN = "tokens:admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey:
    """One configured key. `sha256` is the lower-case hex hash of the key; `providers` is `None` for all providers.

    With `on_behalf_of`, each call needs the JWT of the user whose tokens it concerns.
    """

    service: str
    sha256: str
    scopes: frozenset[Scope]
    providers: frozenset[str] | None = None
    expires_at: datetime | None = None
    on_behalf_of: Literal["required"] | None = None

    @property
    def fingerprint(self) -> str:
        """The start of the hash, which names the key to operators and cannot be used to authenticate."""
        return self.sha256[:FINGERPRINT_CHARACTERS]

    def is_alive(self, now: datetime | None = None) -> bool:
        return self.expires_at is None or (now or datetime.now(UTC)) < self.expires_at

    def reveals_every_user(self) -> bool:
        """Whether the key alone reveals the tokens of every user."""
        return Scope.REVEAL in self.scopes and self.on_behalf_of is None

    def may_use(self, provider: str) -> bool:
        return self.providers is None or provider in self.providers

    def limited_by(self, other: ServiceKey) -> ServiceKey:
        """Return this entry with only what `other` permits too."""
        lists = [one.providers for one in (self, other) if one.providers is not None]
        return replace(
            self,
            scopes=self.scopes & other.scopes,
            providers=frozenset.intersection(*lists) if lists else None,
            expires_at=min((one.expires_at for one in (self, other) if one.expires_at is not None), default=None),
            on_behalf_of=self.on_behalf_of or other.on_behalf_of,
        )


def generate_key() -> str:
    """Return a new key: `ptv_` and 32 random bytes as 43 base64url characters."""
    return PREFIX + secrets.token_urlsafe(_RANDOM_BYTES)


def is_well_formed(key: str) -> bool:
    return _KEY.fullmatch(key) is not None


def hash_key(key: str) -> str:
    """Return the SHA-256 in lower-case hex. The key has 256 random bits, so it needs no salt and no stretching."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyListError(Exception):
    """An invalid list of service keys. The text names the entry and the rule, and quotes nothing of the list."""


class KeyEntry(BaseModel):
    """One entry of the JSON list."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    providers: Annotated[frozenset[Annotated[str, Field(pattern=SLUG_PATTERN)]], Field(min_length=1)] | None = None
    expires_at: AwareDatetime | None = None
    on_behalf_of: Literal["required"] | None = None


_LIST = TypeAdapter(list[KeyEntry])


def parse_key_list(text: str | bytes) -> list[ServiceKey]:
    """Return the keys of the JSON list, or raise `KeyListError`."""
    try:
        entries = _LIST.validate_python(json.loads(text, object_pairs_hook=unique_members))
    except ValidationError as error:
        raise KeyListError(_describe(error)) from None
    except (ValueError, RecursionError):
        raise KeyListError("the list of service keys is not valid JSON") from None
    keys = [ServiceKey(**dict(entry)) for entry in entries]
    if len({key.sha256 for key in keys}) != len(keys):
        raise KeyListError("the list has the same key twice")
    return keys


def _describe(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    is_unknown = first["type"] == "extra_forbidden"  # the last part of the location is then text from the list
    location = ".".join(str(part) for part in first["loc"][: 1 if is_unknown else 2])
    if not location:
        return "the list of service keys is not a list"
    rule = "has an unknown member" if is_unknown else first["msg"].partition(",")[0]
    return f"entry {location}: {rule}"


def render_key_list(keys: list[ServiceKey]) -> str:
    """Return the JSON list, indented and sorted for people to read and compare."""
    entries = [KeyEntry(**asdict(key)).model_dump(mode="json", exclude_none=True) for key in keys]
    for entry in entries:
        for name in ("scopes", "providers"):
            if name in entry:
                entry[name].sort()
    return json.dumps(entries, indent=2) + "\n"
