"""Parameters and answers of the token endpoint (RFC 6749, RFC 8693), as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from app.tokens.models import SLUG_PATTERN

TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105  the name of a grant
ACCESS_TOKEN_TYPE: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105  the name of a type
_SLUG: Final = SLUG_PATTERN.strip("^$")
AUDIENCE_PATTERN: Final = f"^{_SLUG}(/{_SLUG})?$"
_MAXIMUM_SCOPE_CHARACTERS: Final = 4_096


class TokenExchangeRequest(BaseModel):
    """The parameters that the vault reads. Others are ignored, and one without a value counts as left out."""

    grant_type: Literal["urn:ietf:params:oauth:grant-type:token-exchange"]
    subject_token: Annotated[SecretStr, Field(min_length=1)] = Field(
        description="The user's JWT: Supabase Auth's access token."
    )
    subject_token_type: Literal["urn:ietf:params:oauth:token-type:access_token", "urn:ietf:params:oauth:token-type:jwt"]
    audience: Annotated[str, Field(pattern=AUDIENCE_PATTERN)] = Field(
        description="The provider, or provider/service_type."
    )
    scope: Annotated[str, Field(max_length=_MAXIMUM_SCOPE_CHARACTERS)] | None = Field(
        default=None, description="Scopes that the token must have, separated by spaces."
    )
    requested_token_type: Literal["urn:ietf:params:oauth:token-type:access_token"] | None = None

    model_config = ConfigDict(
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "grant_type": TOKEN_EXCHANGE,
                    "subject_token": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJjZDYxM2UzMCJ9.c2lnbmF0dXJl",
                    "subject_token_type": ACCESS_TOKEN_TYPE,
                    "audience": "google/calendar",
                    "scope": "https://www.googleapis.com/auth/calendar.readonly",
                }
            ]
        },
    )


class IssuedToken(BaseModel):
    """The provider's access token. `scope` and `expires_in` are there if the vault knows them."""

    access_token: str = Field(repr=False)
    issued_token_type: Literal["urn:ietf:params:oauth:token-type:access_token"]
    token_type: Literal["Bearer"]
    expires_in: int | None = Field(default=None, description="Seconds until the token expires.")
    scope: str | None = Field(default=None, description="All scopes that the user has granted.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "access_token": "ya29.example",
                    "issued_token_type": ACCESS_TOKEN_TYPE,
                    "token_type": "Bearer",
                    "expires_in": 3599,
                    "scope": "https://www.googleapis.com/auth/calendar.readonly",
                }
            ]
        }
    )


class TokenError(BaseModel):
    """An error of the token endpoint (RFC 6749, section 5.2). `code` is the vault's own, as in a problem."""

    error: str = Field(examples=["invalid_target"])
    error_description: str = Field(examples=["the user has no such token"])
    code: str = Field(examples=["token_not_found"])
    request_id: str
