"""Bodies of requests."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.api.schemas.fields import (
    EXAMPLE_USER_ID,
    BaseUrl,
    Email,
    Metadata,
    Present,
    ProviderScope,
    SecretText,
    Slug,
    Timestamp,
    UserId,
)
from app.refresh.authorization import Authorization
from app.tokens.freshness import MAXIMUM_MIN_TTL_SECONDS
from app.tokens.models import (
    DEFAULT_SERVICE_TYPE,
    LAST_VERSION,
    MAXIMUM_URL_CHARACTERS,
    UNSET,
    TokenId,
    TokenInput,
    TokenPatch,
    TokenStatus,
)

_TEN_YEARS_SECONDS: Final = 10 * 366 * 24 * 3600


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

    status: Present[TokenStatus] = None
    status_reason: Annotated[str, Field(min_length=1, max_length=500)] | None = Field(
        default=None, description="Why the status changes, in words for people. Requires `status`. Null: no reason."
    )
    metadata: Present[Metadata] = None

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
