"""What the vault answers, as frozen dataclasses. Members that this version does not know are ignored.

Secrets are plain texts that no `repr` shows. What holds one cannot be pickled, so that no cache or queue stores it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NoReturn, Self

from token_vault_client.errors import VaultError, error_of

DEFAULT_SERVICE_TYPE = "default"
Json = Mapping[str, Any]
Revoked = Literal["revoked", "unsupported", "failed", "unknown"]


@dataclass(frozen=True, slots=True)
class TokenId:
    user_id: str
    provider: str
    service_type: str = DEFAULT_SERVICE_TYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token without its secrets."""

    id: str
    user_id: str
    provider: str
    service_type: str
    status: str
    status_reason: str | None
    expires_at: datetime | None
    scopes: tuple[str, ...]
    email: str | None
    base_url: str | None
    metadata: Mapping[str, Any]
    has_refresh_token: bool
    refreshable: bool
    refresh_retry_at: datetime | None
    encryption_method: str | None
    kms_key_id: str | None
    version: int
    created_at: datetime | None
    updated_at: datetime | None
    last_refreshed: datetime | None

    @property
    def token_id(self) -> TokenId:
        return TokenId(self.user_id, self.provider, self.service_type)

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(**_members(answer))


class _NotPickled:
    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} holds a secret and cannot be pickled")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevealedToken(_NotPickled, Token):
    """A token with its secrets; `refresh_token` only if it was asked for.

    `min_ttl_met` is false if the access token lives shorter than the caller asked, or has expired.
    """

    access_token: str = field(repr=False)
    refresh_token: str | None = field(default=None, repr=False)
    min_ttl_met: bool = True

    @classmethod
    def parse(cls, answer: Json) -> Self:
        optional = {"refresh_token": answer.get("refresh_token"), "min_ttl_met": answer["min_ttl_met"]}
        return cls(**_members(answer), access_token=answer["access_token"], **optional)


@dataclass(frozen=True, slots=True)
class UnreadableToken:
    """A token whose row does not decode; it can be replaced and deleted."""

    token_id: TokenId
    version: int
    error: VaultError


@dataclass(frozen=True, slots=True)
class TokenList:
    """Tokens without secrets; of a page, also the cursor of the next one, which the last page does not have."""

    tokens: tuple[Token, ...]
    unreadable: tuple[UnreadableToken, ...] = ()
    next_cursor: str | None = None

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(
            tuple(Token.parse(one) for one in answer["tokens"]),
            tuple(
                UnreadableToken(
                    TokenId(one["user_id"], one["provider"], one["service_type"]),
                    one["version"],
                    error_of(one["problem"]),
                )
                for one in answer.get("unreadable") or ()
            ),
            answer.get("next_cursor"),
        )


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of each secret at the provider. `None`: the token has no refresh token."""

    access_token: Revoked
    refresh_token: Revoked | None
    deleted: bool

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(answer["access_token"], answer.get("refresh_token"), answer["deleted"])


@dataclass(frozen=True, slots=True)
class Erased:
    """The number of deleted tokens; with `revoke`, a receipt for each provider and service type."""

    deleted: int
    receipts: Mapping[tuple[str, str], Receipt] = field(default_factory=dict)

    @classmethod
    def parse(cls, answer: Json) -> Self:
        receipts = answer.get("receipts") or ()
        return cls(answer["deleted"], {(one["provider"], one["service_type"]): Receipt.parse(one) for one in receipts})


@dataclass(frozen=True, slots=True)
class EncryptionStatus:
    """The tokens by encryption key. `answer` holds all members."""

    primary_scheme: str | None
    tokens: int
    due: int | None
    answer: Json

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(answer["primary_scheme"], answer["tokens"], answer["due"], answer)


@dataclass(frozen=True, slots=True)
class IssuedToken(_NotPickled):
    """The answer of the token endpoint (RFC 8693)."""

    access_token: str = field(repr=False)
    expires_in: int | None
    scopes: tuple[str, ...]

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(answer["access_token"], answer.get("expires_in"), tuple((answer.get("scope") or "").split()))


@dataclass(frozen=True, slots=True)
class Readiness:
    ready: bool
    checks: Mapping[str, str]

    @classmethod
    def parse(cls, answer: Json) -> Self:
        return cls(answer["status"] == "ready", answer["checks"])


_TIMES = frozenset({"expires_at", "refresh_retry_at", "created_at", "updated_at", "last_refreshed"})


def _members(answer: Json) -> dict[str, Any]:
    return {name: _value(name, answer[name]) for name in Token.__slots__}


def _value(name: str, value: Any) -> Any:  # noqa: ANN401  JSON
    if name == "scopes":
        return tuple(value)
    return datetime.fromisoformat(value) if name in _TIMES and value is not None else value
