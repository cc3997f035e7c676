"""A provider's own answer of a token, as the body of a store or a rotation.

RFC 6749, section 5.1, in the media type `TOKEN_RESPONSE`. It is read as leniently as the answer to an exchange, because
providers differ: an unusable lifetime or scope counts as left out, and members that the vault does not keep, such as
`id_token`, are ignored. JSON of the type `application/json` stays strict.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from app.refresh.token_answer import lifetime_seconds, scope_values
from app.tokens.models import MAXIMUM_TOKEN_CHARACTERS, UNSET, TokenInput

TOKEN_RESPONSE: Final = "application/vnd.oauth.token-response+json"  # noqa: S105  a media type
# members of a token answer that the vault's own body does not have
FOREIGN_MEMBERS: Final = frozenset({"token_type", "scope", "id_token", "ext_expires_in", "refresh_token_expires_in"})


def _lifetime(value: object) -> int | None:
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float | str)):
        raise PydanticCustomError("vault_lifetime", "must be a number of seconds")
    return lifetime_seconds(value)


def _scopes(value: object) -> tuple[str, ...] | None:
    if not (value is None or isinstance(value, str | list)):
        raise PydanticCustomError("vault_scope", "must be text, or a list of texts")
    return scope_values(value)


Lifetime = Annotated[
    int | None,
    BeforeValidator(_lifetime),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}, {"type": "null"}]}),
]
Scope = Annotated[
    tuple[str, ...] | None,
    BeforeValidator(_scopes),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {}}, {"type": "null"}]}),
]


class TokenResponse(BaseModel):
    """A provider's token answer (RFC 6749, section 5.1), unchanged. Members that are not listed are ignored.

    An access token of a provider with several hosts needs a `base_url`: send that token as `application/json`.
    """

    access_token: Annotated[SecretStr, Field(min_length=1, max_length=MAXIMUM_TOKEN_CHARACTERS)]
    refresh_token: Annotated[SecretStr, Field(max_length=MAXIMUM_TOKEN_CHARACTERS)] | None = Field(
        default=None, description="Empty or null: not given."
    )
    expires_in: Lifetime = Field(default=None, description="Seconds from now, also as text. Unusable: not given.")
    scope: Scope = Field(default=None, description="Separated by spaces. Unusable: not given.")

    model_config = ConfigDict(
        hide_input_in_errors=True,
        json_schema_extra={
            "examples": [
                {
                    "access_token": "ya29.example",
                    "expires_in": 3599,
                    "refresh_token": "1//example",
                    "scope": "openid https://www.googleapis.com/auth/calendar.readonly",
                    "token_type": "Bearer",
                }
            ],
            "not": {"required": ["base_url"]},
        },
    )

    @model_validator(mode="before")
    @classmethod
    def _no_base_url(cls, value: Any) -> Any:  # noqa: ANN401  JSON
        if isinstance(value, dict) and "base_url" in value:
            # no provider sends one: the caller means the vault's field, and the token must be bound to it
            raise PydanticCustomError("vault_base_url", "base_url is not of a token answer: send application/json")
        return value

    def to_input(self) -> TokenInput:
        """Return the token; what the answer leaves out is `UNSET`."""
        refresh_token = self.refresh_token
        lifetime = None if self.expires_in is None else timedelta(seconds=self.expires_in)
        return TokenInput(
            access_token=self.access_token,
            refresh_token=refresh_token if refresh_token is not None and refresh_token.get_secret_value() else UNSET,
            expires_at=UNSET if lifetime is None else datetime.now(UTC) + lifetime,
            scopes=UNSET if self.scope is None else self.scope,
        )
