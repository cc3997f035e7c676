"""Request and answer bodies."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SecretStr,
    model_validator,
)
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from app.api.problems import Problem
from app.errors import InvalidRequest
from app.tokens.models import (
    DEFAULT_SERVICE_TYPE,
    HTTPS_URL,
    MAXIMUM_TOKEN_CHARACTERS,
    MAXIMUM_URL_CHARACTERS,
    RESERVED_METADATA,
    SLUG_PATTERN,
    UNSET,
    UUID_PATTERN,
    RevealedToken,
    StoredToken,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenStatus,
    parse_base_url,
)

# --- What callers send.

_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_TEN_YEARS_SECONDS = 10 * 366 * 24 * 3600

EXAMPLE_USER_ID = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"


def _rfc3339(value: object) -> object:
    if value is not None and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise PydanticCustomError("vault_time", "must be an RFC 3339 time with an offset, like 2027-03-23T09:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("vault_time", "is outside the years 1 to 9999") from None


def _base_url(value: str) -> str:
    try:
        return parse_base_url(value)
    except InvalidRequest as error:
        kind = "vault_base_url"
        raise PydanticCustomError(kind, error.detail.removeprefix("base_url ")) from None


UserId = Annotated[str, Field(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"})]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
SecretText = Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_TOKEN_CHARACTERS)]
Timestamp = Annotated[datetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]
BaseUrl = Annotated[
    str,
    AfterValidator(_base_url),
    Field(
        json_schema_extra={
            "format": "uri",
            "pattern": f"^{HTTPS_URL.pattern}$",
            "maxLength": MAXIMUM_URL_CHARACTERS,
        }
    ),
]
# ECMAScript, Rust and Python differ over these four in \s, and the document must mean what the vault does
_NO_SPACE = r"[^@\s\u001c-\u001f\u0085\ufeff]"
Email = Annotated[str, Field(pattern=f"^{_NO_SPACE}+@{_NO_SPACE}+$", max_length=320)]
Metadata = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"propertyNames": {"type": "string", "not": {"enum": sorted(RESERVED_METADATA)}}}),
]
ProviderScope = Annotated[str, Field(min_length=1, max_length=512)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StoreTokenRequest(_Request):
    """A token to store, or the secret to rotate to. Give `expires_at` or `expires_in`, not both."""

    access_token: SecretText
    refresh_token: SecretText | None = None
    expires_at: Timestamp | None = Field(default=None, description="RFC 3339 with an offset; null: never.")
    expires_in: Annotated[int, Field(strict=True, ge=1, le=_TEN_YEARS_SECONDS)] | None = Field(
        default=None, description="Seconds from now, as OAuth servers answer."
    )
    scopes: Annotated[list[ProviderScope], Field(max_length=200)] = []
    email: Email | None = None
    base_url: BaseUrl | None = Field(default=None, description="https URL of the provider's installation.")
    metadata: Metadata = Field(default={}, description="The caller's own, at most 8 KiB as compact JSON.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"access_token": "1234~example", "base_url": "https://canvas.example.edu", "expires_in": 3600}
            ],
            "not": {"required": ["expires_at", "expires_in"]},
        }
    )

    @model_validator(mode="after")
    def _one_expiry(self) -> StoreTokenRequest:
        if {"expires_at", "expires_in"} <= self.model_fields_set:
            raise PydanticCustomError("vault_expiry", "give expires_at or expires_in, not both")
        return self

    def to_input(self) -> TokenInput:
        """Return what was given; what was not stays unset."""
        given = self.model_fields_set
        expires_at = self.expires_at if "expires_at" in given else UNSET
        if self.expires_in is not None:
            expires_at = datetime.now(UTC) + timedelta(seconds=self.expires_in)
        return TokenInput(
            access_token=self.access_token,
            refresh_token=self.refresh_token if "refresh_token" in given else UNSET,
            expires_at=expires_at,
            scopes=tuple(self.scopes) if "scopes" in given else UNSET,
            email=self.email if "email" in given else UNSET,
            base_url=self.base_url if "base_url" in given else UNSET,
            metadata=self.metadata if "metadata" in given else UNSET,
        )


class PatchTokenRequest(_Request):
    """A new status, new metadata, or both. A null in `metadata` removes its key; what is not named stays."""

    status: TokenStatus | None = None
    reason: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="Why the status changes, for people; shown in answers. Only together with a status."
    )
    metadata: Metadata | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"status": "needs_reauth", "reason": "Canvas answered 401"}],
            "anyOf": [
                {"required": ["status"], "properties": {"status": {"type": "string"}}},
                {
                    "required": ["metadata"],
                    "properties": {"metadata": {"type": "object"}, "reason": {"type": "null"}},
                },
            ],
        }
    )

    @model_validator(mode="after")
    def _something(self) -> PatchTokenRequest:
        kind = "vault_patch"
        if self.status is None and self.metadata is None:
            raise PydanticCustomError(kind, "must change status or metadata")
        if self.reason is not None and self.status is None:
            raise PydanticCustomError(kind, "a reason goes together with a status")
        return self

    def to_patch(self) -> TokenPatch:
        return TokenPatch(
            status=UNSET if self.status is None else self.status,
            status_reason=self.reason,
            metadata=UNSET if self.metadata is None else self.metadata,
        )


class TokenIdBody(_Request):
    user_id: UserId
    provider: Slug
    service_type: Slug = DEFAULT_SERVICE_TYPE

    def to_token_id(self) -> TokenId:
        return TokenId.parse(self.user_id, self.provider, self.service_type)


class BatchGetRequest(_Request):
    """Up to 100 tokens to reveal."""

    tokens: Annotated[list[TokenIdBody], Field(min_length=1, max_length=100)]
    include: Literal["refresh_token"] | None = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tokens": [{"user_id": EXAMPLE_USER_ID, "provider": "canvas"}]}]}
    )


# --- What callers get.

_TIME = "2027-03-23T09:00:00Z"
_EXAMPLE_TOKEN: dict[str, JsonValue] = {
    "user_id": EXAMPLE_USER_ID,
    "provider": "canvas",
    "service_type": "default",
    "status": "ok",
    "status_reason": None,
    "expires_at": _TIME,
    "scopes": [],
    "email": None,
    "base_url": "https://canvas.example.edu",
    "metadata": {"course_count": 4},
    "has_refresh_token": False,
    "encryption_method": "aes256-gcm-v1",
    "kms_key_id": None,
    "version": 1,
    "created_at": "2026-11-23T09:00:00Z",
    "updated_at": "2026-11-23T09:00:00Z",
    "last_refreshed": "2026-11-23T09:00:00Z",
}


class Token(BaseModel):
    """A token without its secrets."""

    user_id: str
    provider: str
    service_type: str
    status: TokenStatus
    status_reason: str | None
    expires_at: datetime | None
    scopes: list[str]
    email: str | None
    base_url: str | None
    metadata: dict[str, Any]
    has_refresh_token: bool
    encryption_method: str | None
    kms_key_id: str | None
    version: int
    created_at: datetime | None
    updated_at: datetime | None
    last_refreshed: datetime | None

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_TOKEN]})


class Revealed(Token):
    """A token with its secret. `refresh_token` is there only where it was asked for."""

    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(default=None, repr=False)

    model_config = ConfigDict(json_schema_extra={"examples": [{**_EXAMPLE_TOKEN, "access_token": "1234~example"}]})


class TokenList(BaseModel):
    tokens: list[Token]


class Erased(BaseModel):
    deleted: int


class BatchItem(BaseModel):
    """Either the token or what is wrong with it."""

    token: Revealed | None = None
    problem: Problem | None = None


class BatchGetResponse(BaseModel):
    """One result for each token asked for, in the same order."""

    results: list[BatchItem]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready", "not_ready"]
    checks: dict[str, Literal["up", "degraded", "down"]]


def token_fields(token: StoredToken) -> dict[str, Any]:
    """Return what `Token` shows of a row."""
    return {
        "user_id": token.token_id.user_id,
        "provider": token.token_id.provider,
        "service_type": token.token_id.service_type,
        "status": token.status,
        "status_reason": token.status_reason,
        "expires_at": token.expires_at,
        "scopes": list(token.scopes),
        "email": token.email,
        "base_url": token.base_url,
        "metadata": dict(token.metadata),
        "has_refresh_token": token.refresh_ciphertext is not None,
        "encryption_method": token.encryption_method,
        "kms_key_id": token.kms_key_id,
        "version": token.version,
        "created_at": token.created_at,
        "updated_at": token.updated_at,
        "last_refreshed": token.last_refreshed,
    }


def revealed_body(revealed: RevealedToken, *, include_refresh: bool) -> Revealed:
    """Return the answer that holds the secret; `refresh_token` is left unset where it was not asked for."""
    fields = token_fields(revealed.token)
    fields["access_token"] = revealed.access_token.get_secret_value()
    if include_refresh:
        fields["refresh_token"] = revealed.refresh_token.get_secret_value() if revealed.refresh_token else None
    return Revealed.model_construct(**fields)  # our own values, which need no second check


# --- Answers built from our own models, so nothing is validated twice.


def json_answer(body: BaseModel, *, status: int = 200, version: int | None = None) -> Response:
    """Return the model as JSON, without the fields that were never set, and its version as the ETag."""
    headers = {} if version is None else {"ETag": f'"{version}"'}
    content = body.model_dump_json(exclude_unset=True)
    return Response(content, status, headers, media_type="application/json")
