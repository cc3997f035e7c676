"""Bodies of requests and responses, as the OpenAPI document shows them.

`app.api.answers` builds the responses.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    JsonValue,
    SecretStr,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from app.api.problems import Problem, TokenReceipt
from app.errors import InvalidRequest
from app.refresh.authorization import Authorization
from app.tokens.freshness import MAXIMUM_MIN_TTL_SECONDS
from app.tokens.models import (
    DEFAULT_SERVICE_TYPE,
    HTTPS_URL,
    LAST_VERSION,
    MAXIMUM_TOKEN_CHARACTERS,
    MAXIMUM_URL_CHARACTERS,
    RESERVED_METADATA,
    SLUG_PATTERN,
    UNSET,
    UUID_PATTERN,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenStatus,
    parse_base_url,
)

MAXIMUM_ANSWER_BYTES: Final = 1024 * 1024  # of several tokens; a problem of a batch takes some 300 bytes more
DEFAULT_PAGE: Final = 100  # tokens of a page of the list of all users' tokens
MAXIMUM_PAGE: Final = 500
EXAMPLE_USER_ID = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-][0-9]{2}:[0-9]{2})"
)
_TEN_YEARS_SECONDS = 10 * 366 * 24 * 3600


def _rfc3339(value: object) -> object:
    if value is not None and not (isinstance(value, str) and _RFC3339.fullmatch(value)):
        raise PydanticCustomError("vault_time", "must be an RFC 3339 time with an offset, like 2027-03-23T09:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise PydanticCustomError("vault_time", "is outside the years 1 to 9999 in UTC") from None


def _base_url(value: str) -> str:
    try:
        return parse_base_url(value)
    except InvalidRequest as error:
        raise PydanticCustomError("vault_base_url", error.detail.removeprefix("base_url ")) from None


UserId = Annotated[str, Field(pattern=UUID_PATTERN, json_schema_extra={"format": "uuid"})]
Slug = Annotated[str, Field(pattern=SLUG_PATTERN)]
SecretText = Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_TOKEN_CHARACTERS)]
Timestamp = Annotated[datetime, BeforeValidator(_rfc3339), AfterValidator(_in_utc)]
_TIMESTAMP: Final = TypeAdapter(Timestamp)


def parse_time(name: str, text: str) -> datetime:
    """Return the time of a query parameter, or raise `InvalidRequest`."""
    try:
        return _TIMESTAMP.validate_python(text)
    except ValidationError:
        raise InvalidRequest.of_field(
            name, f"{name} must be an RFC 3339 time with an offset, like 2027-03-23T09:00:00Z"
        ) from None


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
# spelt out because ECMAScript, Rust and Python disagree whether \s matches these; OpenAPI and the vault must agree
_NO_SPACE = r"[^@\s\u001c-\u001f\u0085\ufeff]"
Email = Annotated[str, Field(pattern=f"^{_NO_SPACE}+@{_NO_SPACE}+$", max_length=320)]
Metadata = Annotated[
    dict[str, Any],
    Field(json_schema_extra={"propertyNames": {"type": "string", "not": {"enum": sorted(RESERVED_METADATA)}}}),
]
Value = TypeVar("Value")


def _not_null(value: object) -> object:
    if value is None:
        raise PydanticCustomError("vault_null", "must not be null: leave it out")
    return value


class _NotNull:
    """Leaves null out of the JSON schema of an optional field."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        [schema] = (one for one in handler(core)["anyOf"] if one != {"type": "null"})
        return cast("JsonSchemaValue", schema)


# a field that may be left out, which is `None` here, and is no null otherwise
_Present = Annotated[Value | None, BeforeValidator(_not_null), _NotNull()]
ProviderScope = Annotated[str, Field(min_length=1, max_length=512)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class StoreTokenRequest(_Request):
    """A token to store or to rotate to. Give `expires_at` or `expires_in`, not both."""

    access_token: SecretText
    refresh_token: SecretText | None = None
    expires_at: Timestamp | None = Field(default=None, description="RFC 3339 with an offset. Null: not given.")
    expires_in: Annotated[int, Field(strict=True, ge=1, le=_TEN_YEARS_SECONDS)] | None = Field(
        default=None, description="Seconds from now, as in a token response of OAuth 2.0. Null: not given."
    )
    scopes: Annotated[list[ProviderScope], Field(max_length=200)] = []
    email: Email | None = None
    base_url: BaseUrl | None = Field(
        default=None,
        description="The https URL of the provider's installation. The secrets are encrypted for it. In a rotation, "
        "another URL than the stored one removes a refresh token that is not given.",
    )
    metadata: Metadata = Field(default={}, description="Data of the caller, at most 8 KiB as compact JSON.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"access_token": "1234~example", "base_url": "https://canvas.example.edu", "expires_in": 3600}
            ],
            "not": {
                "required": ["expires_at", "expires_in"],
                "properties": {"expires_at": {"type": "string"}, "expires_in": {"type": "integer"}},
            },
        }
    )

    @model_validator(mode="after")
    def _one_expiry(self) -> StoreTokenRequest:
        if self.expires_at is not None and self.expires_in is not None:
            raise PydanticCustomError("vault_expiry", "give expires_at or expires_in, not both")
        return self

    def to_input(self) -> TokenInput:
        """Return the fields of the request; those that are not in it are `UNSET`."""
        given = self.model_fields_set
        expires_at = self.expires_at
        if self.expires_in is not None:
            expires_at = datetime.now(UTC) + timedelta(seconds=self.expires_in)
        return TokenInput(
            access_token=self.access_token,
            refresh_token=self.refresh_token if "refresh_token" in given else UNSET,
            expires_at=UNSET if expires_at is None else expires_at,
            scopes=tuple(self.scopes) if "scopes" in given else UNSET,
            email=self.email if "email" in given else UNSET,
            base_url=self.base_url if "base_url" in given else UNSET,
            metadata=self.metadata if "metadata" in given else UNSET,
        )


class PatchTokenRequest(_Request):
    """A new status, new metadata, or both. Keys of `metadata` are added or replaced; a null removes its key."""

    status: _Present[TokenStatus] = None
    status_reason: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="Why the status changes, in words for people. Requires `status`. Null: no reason."
    )
    metadata: _Present[Metadata] = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"status": "needs_reauth", "status_reason": "Canvas answered 401"}],
            "minProperties": 1,
            "dependentRequired": {"status_reason": ["status"]},
        }
    )

    @model_validator(mode="after")
    def _some_change(self) -> PatchTokenRequest:
        if not self.model_fields_set:
            raise PydanticCustomError("vault_patch", "must change status or metadata")
        if "status_reason" in self.model_fields_set and self.status is None:
            raise PydanticCustomError("vault_patch", "status_reason requires status")
        return self

    def to_patch(self) -> TokenPatch:
        return TokenPatch(
            status=UNSET if self.status is None else self.status,
            status_reason=self.status_reason,
            metadata=UNSET if self.metadata is None else self.metadata,
        )


MinTtl = Annotated[int, Field(strict=True, ge=0, le=MAXIMUM_MIN_TTL_SECONDS)]


class RefreshRequest(_Request):
    """The version of the token that the provider has rejected: only that version is refreshed."""

    rejected_version: Annotated[int, Field(strict=True, ge=0, le=LAST_VERSION)]

    model_config = ConfigDict(json_schema_extra={"examples": [{"rejected_version": 1795424400000}]})


class ExchangeRequest(_Request):
    """An authorization code that came back to `redirect_uri`, and what to store beside its tokens."""

    code: Annotated[SecretStr, Field(min_length=1, max_length=4_096)]
    redirect_uri: Annotated[str, Field(min_length=1, max_length=MAXIMUM_URL_CHARACTERS)]
    code_verifier: Annotated[SecretStr, Field(min_length=43, max_length=128)] | None = Field(
        default=None, description="The verifier of PKCE, RFC 7636."
    )
    base_url: BaseUrl | None = Field(
        default=None, description="The https URL of the provider's installation, for Canvas."
    )
    email: Email | None = None
    metadata: Metadata = Field(default={}, description="Data of the caller, at most 8 KiB as compact JSON.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"code": "4/0AX4XfWh", "redirect_uri": "https://api.pulseplan.example/oauth/callback"}]
        }
    )

    def to_authorization(self) -> Authorization:
        return Authorization(
            code=self.code,
            redirect_uri=self.redirect_uri,
            code_verifier=self.code_verifier,
            base_url=self.base_url,
            email=self.email,
            metadata=self.metadata,
        )


class TokenIdBody(_Request):
    user_id: UserId
    provider: Slug
    service_type: Slug = Field(default=DEFAULT_SERVICE_TYPE, description="`default` if it is left out.")

    def to_token_id(self) -> TokenId:
        return TokenId(self.user_id.lower(), self.provider, self.service_type)  # validated as `TokenId.parse` does


class BatchGetRequest(_Request):
    """Up to 100 different tokens to reveal."""

    tokens: Annotated[list[TokenIdBody], Field(min_length=1, max_length=100, json_schema_extra={"uniqueItems": True})]
    include: Literal["refresh_token"] | None = None
    min_ttl: MinTtl | None = Field(
        default=None,
        description="Refresh tokens that expire within these seconds. Null: within the provider's margin. 0: none.",
    )

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tokens": [{"user_id": EXAMPLE_USER_ID, "provider": "canvas"}]}]}
    )

    @field_validator("tokens")
    @classmethod
    def _different(cls, tokens: list[TokenIdBody]) -> list[TokenIdBody]:
        first: dict[TokenId, int] = {}
        for index, token in enumerate(tokens):
            if (earlier := first.setdefault(token.to_token_id(), index)) != index:
                raise PydanticCustomError("vault_repeated", f"must not repeat a token: {index} is {earlier} again")
        return tokens


_EXAMPLE_TOKEN: dict[str, JsonValue] = {
    "id": "7d4f3a0e-52f4-4f0e-9b35-0d1c7a3b5e11",
    "user_id": EXAMPLE_USER_ID,
    "provider": "canvas",
    "service_type": "default",
    "status": "ok",
    "status_reason": None,
    "expires_at": "2027-03-23T09:00:00Z",
    "scopes": [],
    "email": None,
    "base_url": "https://canvas.example.edu",
    "metadata": {"course_count": 4},
    "has_refresh_token": False,
    "refreshable": False,
    "refresh_retry_at": None,
    "encryption_method": "aes256-gcm-v1",
    "kms_key_id": None,
    "version": 1795424400000,
    "created_at": "2026-11-23T09:00:00Z",
    "updated_at": "2026-11-23T09:00:00Z",
    "last_refreshed": "2026-11-23T09:00:00Z",
}


class Token(BaseModel):
    """A token without its secrets. A writer to the database can change every field but the token id."""

    id: str = Field(description="The row's id, which other tables may reference.")
    user_id: str
    provider: str
    service_type: str
    status: TokenStatus
    status_reason: str | None
    expires_at: datetime | None
    scopes: list[str]
    email: str | None
    base_url: str | None = Field(
        description="Null also if the row holds a text that is no https URL. Authentic in the answer of a reveal."
    )
    metadata: dict[str, Any]
    has_refresh_token: bool
    refreshable: bool = Field(description="Whether the vault can refresh it: it has a refresh token and a provider.")
    refresh_retry_at: datetime | None = Field(
        description="The earliest time of the next refresh: after a failed one, or if the provider limits their number."
    )
    encryption_method: str | None
    kms_key_id: str | None
    version: int
    created_at: datetime | None
    updated_at: datetime | None
    last_refreshed: datetime | None

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE_TOKEN]})


class Revealed(Token):
    """A token with its secrets. `refresh_token` is present only if it was asked for.

    The secrets, the token id and `base_url` are authentic, and nothing else is. Of a token in PulsePlan's formats, read
    while `ALLOW_LEGACY_FORMATS` is true, only the user is.
    """

    min_ttl_met: bool = Field(
        description="Whether the access token lives for `min_ttl` seconds more. False: it expires sooner, or has "
        "expired and cannot be refreshed."
    )
    access_token: str = Field(repr=False)
    refresh_token: str | None = Field(default=None, repr=False)

    model_config = ConfigDict(
        json_schema_extra={"examples": [{**_EXAMPLE_TOKEN, "access_token": "1234~example", "min_ttl_met": True}]}
    )


class UnreadableToken(BaseModel):
    """A token whose row does not decode. It can be replaced and deleted."""

    user_id: str
    provider: str
    service_type: str
    version: int
    problem: Problem


class TokenList(BaseModel):
    """A user's tokens, all of them. `unreadable` is there only if there are any."""

    tokens: list[Token]
    unreadable: list[UnreadableToken] = []


class TokenPage(BaseModel):
    """A page of the tokens of all users; `next_cursor` is null on the last one, which is empty.

    `unreadable` is there only if there are any.
    """

    tokens: list[Token]
    unreadable: list[UnreadableToken] = []
    next_cursor: str | None = Field(description="The `cursor` of the next page.")

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"tokens": [_EXAMPLE_TOKEN], "next_cursor": "fU86DlL0Tw6bNQ0cejteEQ"}]}
    )


class Erased(BaseModel):
    """The number of deleted tokens, and with `revoke` the receipt of each. Every token of the user is deleted."""

    deleted: int
    receipts: list[TokenReceipt] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "deleted": 1,
                    "receipts": [
                        {
                            "provider": "google",
                            "service_type": "calendar",
                            "access_token": "revoked",
                            "refresh_token": "revoked",
                            "deleted": True,
                        }
                    ],
                }
            ]
        }
    )


class BatchItem(BaseModel):
    """One token, or the problem that prevented its reveal."""

    token: Revealed | None = None
    problem: Problem | None = None


class BatchGetResponse(BaseModel):
    """One result for each token of the request, in the same order. The tokens take at most 1 MiB."""

    results: list[BatchItem]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    status: Literal["ready", "not_ready", "stopping"]
    checks: dict[str, Literal["up", "degraded", "down"]]
