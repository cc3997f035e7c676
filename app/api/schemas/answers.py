"""Bodies of answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
)

from app.api.problems import Problem, TokenReceipt
from app.api.schemas.fields import (
    EXAMPLE_USER_ID,
)
from app.tokens.models import (
    TokenStatus,
)

MAXIMUM_ANSWER_BYTES: Final = 1024 * 1024  # of several tokens; a problem of a batch takes some 300 bytes more
DEFAULT_PAGE: Final = 100  # tokens of a page of the list of all users' tokens
MAXIMUM_PAGE: Final = 500
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
