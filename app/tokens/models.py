"""The domain model: tokens, their ids, callers, and the preconditions of a write."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final, NamedTuple

from pydantic import SecretStr

from app.errors import InvalidRequest, StoreMisconfigured, VersionConflict

SLUG_PATTERN = r"^[a-z][a-z0-9_-]{0,31}$"
UUID_PATTERN = r"^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$"
DEFAULT_SERVICE_TYPE = "default"
MAXIMUM_TOKEN_CHARACTERS = 16_384
MAXIMUM_URL_CHARACTERS = 2_048
LAST_VERSION = 2**63 - 1  # the largest bigint, which has no successor

_SLUG = re.compile(SLUG_PATTERN)
HTTPS_URL = re.compile(r"https://[A-Za-z0-9.-]+(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?")
_UUID = re.compile(UUID_PATTERN)

# keys of the row's `metadata` that the vault sets; a caller cannot
RESERVED_METADATA = frozenset(
    {"base_url", "status", "status_reason", "encryption_method", "kms_key_id", "encryption_fallback"}
)


class TokenStatus(StrEnum):
    OK = "ok"
    NEEDS_REAUTH = "needs_reauth"
    REVOKED = "revoked"
    ERROR = "error"


class TokenId(NamedTuple):
    """The id of one token. `parse` validates a caller's values; values from rows are used as they are.

    A named tuple, because a batch hashes and compares its ids about ten times each.
    """

    user_id: str
    provider: str
    service_type: str = DEFAULT_SERVICE_TYPE

    @classmethod
    def parse(cls, user_id: str, provider: str, service_type: str = DEFAULT_SERVICE_TYPE) -> TokenId:
        """Return the id in canonical spelling, or raise `InvalidRequest`."""
        return cls(parse_user_id(user_id), parse_slug("provider", provider), parse_slug("service_type", service_type))


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


def parse_user_id(user_id: str) -> str:
    """Return the UUID in lower case, the one spelling that ciphertexts are bound to."""
    if not _UUID.fullmatch(user_id):
        raise InvalidRequest.of_field("user_id", "user_id must be a UUID")
    return user_id.lower()


def parse_slug(name: str, slug: str) -> str:
    """Return a provider or service type, or raise `InvalidRequest`."""
    if not _SLUG.fullmatch(slug):
        raise InvalidRequest.of_field(name, f"{name} must match {SLUG_PATTERN}")
    return slug


def is_base_url(text: str) -> bool:
    """Return whether the text is an https URL that `parse_base_url` accepts."""
    return len(text) <= MAXIMUM_URL_CHARACTERS and HTTPS_URL.fullmatch(text) is not None


def parse_base_url(url: str) -> str:
    """Return the https URL of a provider's installation, or raise `InvalidRequest`."""
    if not is_base_url(url):
        raise InvalidRequest.of_field(
            "base_url", "base_url must be an https URL without user information, query or fragment"
        )
    return url


# values of `RefreshState.failure`: the last refresh may have spent the refresh token without an answer, and a provider
# has refused a refresh token after that
ANSWER_LOST: Final = "answer_lost"
OUTCOME_LOST: Final = "refresh_outcome_lost"
REVOCATION_VERSION: Final = "8"  # of the UUID that holds a lease
_VERSION_DIGIT: Final = slice(14, 15)


@dataclass(frozen=True, slots=True)
class RefreshState:
    """The columns of a row about refreshing.

    `generation` counts the claims. `holder` is the UUID of the refresh or the revocation that holds the lease, or that
    died with it; that of a revocation, which leaves no tokens behind, has the version 8 (RFC 9562, section 5.8).
    `attempts` counts failed refreshes since the last success, `failure` names the last one, and `retry_at` is the
    earliest time of the next.
    """

    generation: int = 0
    holder: str | None = None
    attempts: int = 0
    retry_at: datetime | None = None
    failure: str | None = None

    @property
    def is_refreshing(self) -> bool:
        """Whether a refresh holds the lease, or has died with it."""
        return self.holder is not None and self.holder[_VERSION_DIGIT] != REVOCATION_VERSION

    @property
    def may_have_successor(self) -> bool:
        """Whether the provider may have issued tokens that the row does not hold, because an answer was lost."""
        return self.is_refreshing or self.failure in {ANSWER_LOST, OUTCOME_LOST}


NO_REFRESH: Final = RefreshState()


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredToken:
    """One row, with its secrets still encrypted.

    `metadata` is the caller's; the keys that the vault adds in the same column are fields here. `encryption_scheme` is
    `None` if something other than the vault wrote the row. `base_url` is what the row holds, which a bound ciphertext
    authenticates; PulsePlan's rows may hold any text.
    """

    id: str
    token_id: TokenId
    access_ciphertext: str = field(repr=False)
    refresh_ciphertext: str | None = field(repr=False)
    encryption_scheme: str | None
    encryption_method: str | None
    kms_key_id: str | None
    encryption_fallback: bool
    status: TokenStatus
    status_reason: str | None
    expires_at: datetime | None
    scopes: tuple[str, ...]
    email: str | None
    base_url: str | None
    metadata: Mapping[str, Any]
    version: int
    created_at: datetime | None
    updated_at: datetime | None
    last_refreshed: datetime | None
    refresh_token_expires_at: datetime | None = None
    refresh_state: RefreshState = NO_REFRESH

    @property
    def valid_base_url(self) -> str | None:
        """`base_url` if the vault would store it, else `None`: no caller gets another text as a URL."""
        return self.base_url if self.base_url is not None and is_base_url(self.base_url) else None


@dataclass(frozen=True, slots=True)
class UnreadableRow:
    """A row that does not decode. It can be replaced and deleted like a token; `detail` quotes none of its columns.

    `id` names the row to its store; it may hold lone surrogates, which no answer or log can.
    """

    id: str
    token_id: TokenId
    version: int
    detail: str

    def error(self) -> StoreMisconfigured:
        """Return the error of an operation that needs the row's columns."""
        return StoreMisconfigured(self.detail)


TokenRow = StoredToken | UnreadableRow


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFilter:
    """Conditions on tokens; `None` is none. A token without an expiry does not expire before any time."""

    providers: frozenset[str] | None = None
    status: TokenStatus | None = None
    expires_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Deletions:
    """The number of rows that a call has deleted, and the rows that stay because another table references them."""

    deleted: int
    referenced: tuple[TokenRow, ...] = ()


@dataclass(frozen=True, slots=True)
class Rewrap:
    """A row as it was read, and the same row with its secrets under another key."""

    before: StoredToken
    after: StoredToken


class Unset(Enum):
    """A value that the caller left out; `None` is a value that the caller gave."""

    UNSET = "unset"


UNSET = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInput:
    """The input of a store or a rotation. UNSET means empty in a store, unchanged in a rotation."""

    access_token: SecretStr
    refresh_token: SecretStr | Unset | None = UNSET
    expires_at: datetime | Unset | None = UNSET
    scopes: tuple[str, ...] | Unset = UNSET
    email: str | Unset | None = UNSET
    base_url: str | Unset | None = UNSET
    metadata: Mapping[str, Any] | Unset = UNSET

    def __post_init__(self) -> None:
        """Raise `InvalidRequest` for a secret that is empty or too long."""
        for name, secret in (("access_token", self.access_token), ("refresh_token", self.refresh_token)):
            if isinstance(secret, Unset) or secret is None:
                continue
            if not 1 <= len(secret.get_secret_value()) <= MAXIMUM_TOKEN_CHARACTERS:
                raise InvalidRequest.of_field(name, f"{name} must have 1 to {MAXIMUM_TOKEN_CHARACTERS} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPatch:
    """Changes of the columns without a secret. In `metadata` a value of `None` removes its key (RFC 7396)."""

    status: TokenStatus | Unset = UNSET
    status_reason: str | None = None
    metadata: Mapping[str, Any] | Unset = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshAnswer:
    """What a provider's answer says about its new tokens, besides the secrets. `scopes` is `None` if it names none.

    `next_refresh_at` is the earliest time of the next refresh, if the provider limits how often there may be one.
    """

    expires_at: datetime | None
    refresh_token_expires_at: datetime | None = None
    scopes: tuple[str, ...] | None = None
    next_refresh_at: datetime | None = None


class RevealedToken(NamedTuple):
    """A token with its secrets in plaintext. `refresh_token` is `None` if it has none or none was requested.

    `min_ttl_met` is whether it lives as long as the caller needs, `refreshable` whether the vault can refresh it.
    """

    token: StoredToken
    access_token: SecretStr
    refresh_token: SecretStr | None
    min_ttl_met: bool = True
    refreshable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreResult:
    token: StoredToken
    created: bool


class Caller(NamedTuple):
    """The calling service, as audit events name it. Scripts and sweeps have only a `service`.

    `key_fingerprint` names the service key, `address` is the network address, `purpose` the reason the caller gave,
    `on_behalf_of` the user whose JWT came with the call.
    """

    service: str
    request_id: str = ""
    key_fingerprint: str | None = None
    address: str | None = None
    purpose: str | None = None
    on_behalf_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """Conditions of a write: the token has one of `versions`, it exists, or it does not."""

    versions: frozenset[int] | None = None
    must_exist: bool = False
    must_not_exist: bool = False

    def check(self, current: TokenRow | None) -> None:
        """Raise `VersionConflict` if the condition does not hold."""
        if current is None:
            if self.must_exist or self.versions is not None:
                raise VersionConflict("the token does not exist, so it has none of the required versions")
            return
        if self.must_not_exist:
            raise VersionConflict("the token exists already")
        if self.versions is not None and current.version not in self.versions:
            raise VersionConflict("the token has none of the required versions")


NO_PRECONDITION = Precondition()


NO_SERVICE: Final = ""  # the vault itself: a sweep, a self-test
# the calling service of the current operation; a context variable, because the code in between does not use it
current_service: Final[ContextVar[str]] = ContextVar("current_service", default=NO_SERVICE)
