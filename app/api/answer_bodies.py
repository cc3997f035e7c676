"""What callers get."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from app.api.problems import Problem
from app.api.request_bodies import EXAMPLE_USER_ID
from app.tokens.models import RevealedToken, StoredToken, TokenStatus

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
