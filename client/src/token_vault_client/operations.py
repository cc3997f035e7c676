"""The vault's operations as descriptions of calls, which both clients send.

Each function takes what a caller gives and returns a `Call`; it does no input or output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, Generic, Literal, TypeVar
from urllib.parse import quote

from token_vault_client.errors import VaultError, error_of
from token_vault_client.models import (
    DEFAULT_SERVICE_TYPE,
    EncryptionStatus,
    Erased,
    IssuedToken,
    Readiness,
    Receipt,
    RevealedToken,
    Token,
    TokenId,
    TokenList,
)

T = TypeVar("T")
Revoke = Literal["true", "required"]
TOKEN_RESPONSE: Final = "application/vnd.oauth.token-response+json"  # noqa: S105  a media type
_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105  a grant's name
_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"


# an exchange takes up to 10 seconds at the provider and 30 to store the answer; a revocation waits for both and a lease
PROVIDER_SECONDS: Final = 60.0


class Unset(Enum):
    """A value that is left out; `None` is null."""

    UNSET = "unset"


UNSET: Final = Unset.UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One call: the request, how its answer is read, and what it means for retries and the cache.

    `repeatable`: a repetition has the effect of one call. `answer_seconds`: wait so long for the answer, if the client
    does not wait longer anyway. `reveals` is the token that the cache may answer and keep, `forgets` the user, and the
    token if it is only one, that the cache must drop.
    """

    method: str
    path: str
    parse: Callable[[Any], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: object = field(default=None, repr=False)
    form: Mapping[str, str] | None = field(default=None, repr=False)
    repeatable: bool = False
    answer_seconds: float = 0.0
    accepted: frozenset[int] = frozenset()
    reveals: TokenId | None = None
    min_ttl: int | None = None
    from_cache: bool = False
    forgets: tuple[str, TokenId | None] | None = None


def store(
    user_id: str,
    provider: str,
    *,
    access_token: str,
    refresh_token: str | None = None,
    expires_at: datetime | None = None,
    expires_in: int | None = None,
    scopes: Sequence[str] = (),
    email: str | None = None,
    base_url: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    service_type: str = DEFAULT_SERVICE_TYPE,
    if_match: int | None = None,
    only_if_absent: bool = False,
) -> Call[Token]:
    """Create the token or replace all of it: what is not given becomes empty.

    `if_match` is the version that it must have; `only_if_absent` creates only. Both raise `VersionConflict`.
    """
    body = {
        "access_token": access_token,
        "refresh_token": refresh_token,
        "expires_at": _time(expires_at),
        "expires_in": expires_in,
        "scopes": list(scopes),
        "email": email,
        "base_url": base_url,
        "metadata": dict(metadata or {}),
    }
    token_id = TokenId(user_id, provider, service_type)
    return _put(token_id, body, "application/json", if_match, only_if_absent=only_if_absent)


def store_token_response(
    user_id: str,
    provider: str,
    answer: Mapping[str, Any],
    *,
    service_type: str = DEFAULT_SERVICE_TYPE,
    if_match: int | None = None,
    only_if_absent: bool = False,
) -> Call[Token]:
    """Store the answer of a provider's token endpoint as it came (RFC 6749, section 5.1)."""
    token_id = TokenId(user_id, provider, service_type)
    return _put(token_id, dict(answer), TOKEN_RESPONSE, if_match, only_if_absent=only_if_absent)


def reveal(
    user_id: str,
    provider: str,
    *,
    service_type: str = DEFAULT_SERVICE_TYPE,
    min_ttl: int | None = None,
    include_refresh_token: bool = False,
) -> Call[RevealedToken]:
    """Return the token with its access token, refreshed first if it would expire within `min_ttl` seconds.

    `min_ttl=None` is the provider's margin; 0 refreshes nothing.
    """
    token_id = TokenId(user_id, provider, service_type)
    query = {"include": "refresh_token"} if include_refresh_token else {}
    if min_ttl is not None:
        query["min_ttl"] = str(min_ttl)
    return Call(
        method="GET",
        path=_path(token_id),
        query=_query(token_id, query),
        parse=RevealedToken.parse,
        repeatable=True,
        reveals=None if include_refresh_token else token_id,
        min_ttl=min_ttl,
        from_cache=not include_refresh_token and min_ttl != 0,
    )


def refresh(
    user_id: str, provider: str, *, rejected_version: int, service_type: str = DEFAULT_SERVICE_TYPE
) -> Call[RevealedToken]:
    """Return a new access token in place of the version that the provider has rejected.

    If the token has another version already, it is returned as it is, so many callers cause one refresh. Raises
    `InvalidRequest` for a token that is not `refreshable`.
    """
    token_id = TokenId(user_id, provider, service_type)
    return Call(
        method="POST",
        path=f"{_path(token_id)}/refresh",
        query=_query(token_id),
        json={"rejected_version": rejected_version},
        parse=RevealedToken.parse,
        repeatable=True,
        reveals=token_id,
        forgets=(user_id, token_id),
    )


def exchange(
    user_id: str,
    provider: str,
    *,
    code: str,
    redirect_uri: str,
    code_verifier: str | None = None,
    base_url: str | None = None,
    email: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    service_type: str = DEFAULT_SERVICE_TYPE,
) -> Call[Token]:
    """Redeem an authorization code at the provider and store its tokens. `TokenInactive`: the code is refused."""
    token_id = TokenId(user_id, provider, service_type)
    body = {
        "code": code,
        "redirect_uri": redirect_uri,
        "code_verifier": code_verifier,
        "base_url": base_url,
        "email": email,
        "metadata": dict(metadata or {}),
    }
    return Call(
        method="POST",
        path=f"{_path(token_id)}/exchange",
        query=_query(token_id),
        json=body,
        parse=Token.parse,
        answer_seconds=PROVIDER_SECONDS,
        forgets=(user_id, token_id),
    )


def patch(
    user_id: str,
    provider: str,
    *,
    status: str | None = None,
    status_reason: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    service_type: str = DEFAULT_SERVICE_TYPE,
    if_match: int | None = None,
) -> Call[Token]:
    """Change status and metadata; a null in `metadata` removes its key. The reason belongs to the status."""
    token_id = TokenId(user_id, provider, service_type)
    given = {"status": status, "status_reason": status_reason, "metadata": metadata}
    return Call(
        method="PATCH",
        path=_path(token_id),
        query=_query(token_id),
        headers=_if_match(if_match),
        json={name: value for name, value in given.items() if value is not None},
        parse=Token.parse,
        forgets=(user_id, token_id),
    )


def rotate(
    user_id: str,
    provider: str,
    *,
    access_token: str,
    refresh_token: str | Unset | None = UNSET,
    expires_at: datetime | None = None,
    expires_in: int | None = None,
    scopes: Sequence[str] | Unset = UNSET,
    email: str | Unset | None = UNSET,
    base_url: str | Unset | None = UNSET,
    metadata: Mapping[str, Any] | Unset = UNSET,
    service_type: str = DEFAULT_SERVICE_TYPE,
    if_match: int | None = None,
) -> Call[Token]:
    """Replace the secret of an existing token; what is not given stays. `None` removes a value."""
    token_id = TokenId(user_id, provider, service_type)
    body: dict[str, Any] = {"access_token": access_token, "expires_at": _time(expires_at), "expires_in": expires_in}
    given = {"refresh_token": refresh_token, "scopes": scopes, "email": email, "base_url": base_url}
    body |= {name: value for name, value in {**given, "metadata": metadata}.items() if value is not UNSET}
    return Call(
        method="POST",
        path=f"{_path(token_id)}/rotate",
        query=_query(token_id),
        headers=_if_match(if_match),
        json=body,
        parse=Token.parse,
        forgets=(user_id, token_id),
    )


def rewrap(
    user_id: str, provider: str, *, service_type: str = DEFAULT_SERVICE_TYPE, if_match: int | None = None
) -> Call[Token]:
    """Encrypt the token under the primary key; the token does not change."""
    token_id = TokenId(user_id, provider, service_type)
    return Call(
        method="POST",
        path=f"{_path(token_id)}/rewrap",
        query=_query(token_id),
        headers=_if_match(if_match),
        parse=Token.parse,
        repeatable=True,
    )


def delete(
    user_id: str,
    provider: str,
    *,
    service_type: str = DEFAULT_SERVICE_TYPE,
    if_match: int | None = None,
    revoke: Revoke | None = None,
) -> Call[Receipt | None]:
    """Delete the token; with `revoke`, revoke it at the provider first and return the receipt.

    `revoke="required"` keeps a token that cannot be revoked.
    """
    token_id = TokenId(user_id, provider, service_type)
    return Call(
        method="DELETE",
        path=_path(token_id),
        query=_query(token_id, {} if revoke is None else {"revoke": revoke}),
        headers=_if_match(if_match),
        parse=lambda answer: None if answer is None else Receipt.parse(answer),
        answer_seconds=0.0 if revoke is None else PROVIDER_SECONDS,
        forgets=(user_id, token_id),
    )


def list_for_user(user_id: str) -> Call[TokenList]:
    """List the user's tokens without secrets."""
    return Call(method="GET", path=_user_path(user_id), parse=TokenList.parse, repeatable=True)


def list_page(
    *,
    provider: str | None = None,
    status: str | None = None,
    expires_before: datetime | None = None,
    limit: int | None = None,
    cursor: str | None = None,
) -> Call[TokenList]:
    """List one page of the tokens of all users, without secrets; `list_all` goes through all pages."""
    given = {"provider": provider, "status": status, "expires_before": _time(expires_before), "cursor": cursor}
    query = {name: value for name, value in given.items() if value is not None}
    if limit is not None:
        query["limit"] = str(limit)
    return Call(method="GET", path="/v1/tokens", query=query, parse=TokenList.parse, repeatable=True)


def erase_user(user_id: str, *, revoke: Revoke | None = None) -> Call[Erased]:
    """Delete all tokens of the user; with `revoke`, revoke each at its provider first."""
    return Call(
        method="DELETE",
        path=_user_path(user_id),
        query={} if revoke is None else {"revoke": revoke},
        parse=Erased.parse,
        answer_seconds=0.0 if revoke is None else PROVIDER_SECONDS,
        forgets=(user_id, None),
    )


def batch_get(
    tokens: Sequence[TokenId], *, min_ttl: int | None = None, include_refresh_tokens: bool = False
) -> Call[list[RevealedToken | VaultError]]:
    """Reveal up to 100 different tokens: the token or its error for each, in order."""
    body: dict[str, Any] = {
        "tokens": [
            {"user_id": one.user_id, "provider": one.provider, "service_type": one.service_type} for one in tokens
        ],
        "include": "refresh_token" if include_refresh_tokens else None,
        "min_ttl": min_ttl,
    }
    return Call(method="POST", path="/v1/tokens/batch-get", json=body, parse=_results, repeatable=True)


def exchange_token(subject_token: str, audience: str, *, scopes: Sequence[str] = ()) -> Call[IssuedToken]:
    """Exchange a user's JWT for the access token that the user has at `audience` (RFC 8693).

    The audience is a provider, or `provider/service_type`. `scopes` are those that the token must have.
    """
    form = {
        "grant_type": _TOKEN_EXCHANGE,
        "subject_token": subject_token,
        "subject_token_type": _JWT,
        "audience": audience,
    }
    if scopes:
        form["scope"] = " ".join(scopes)
    return Call(method="POST", path="/oauth/token", form=form, parse=IssuedToken.parse, repeatable=True)


def encryption_status() -> Call[EncryptionStatus]:
    """Count the tokens by encryption key."""
    return Call(method="GET", path="/v1/encryption", parse=EncryptionStatus.parse, repeatable=True)


def readiness() -> Call[Readiness]:
    """Return whether the replica can serve; a replica that cannot is no error."""
    return Call(method="GET", path="/readyz", parse=Readiness.parse, repeatable=True, accepted=frozenset({503}))


def _put(
    token_id: TokenId, body: object, media_type: str, if_match: int | None, *, only_if_absent: bool
) -> Call[Token]:
    headers = {"Content-Type": media_type, **_if_match(if_match)}
    if only_if_absent:
        headers["If-None-Match"] = "*"
    return Call(
        method="PUT",
        path=_path(token_id),
        query=_query(token_id),
        headers=headers,
        json=body,
        parse=Token.parse,
        repeatable=if_match is None and not only_if_absent,
        forgets=(token_id.user_id, token_id),
    )


def _results(answer: Any) -> list[RevealedToken | VaultError]:  # noqa: ANN401  JSON
    return [
        RevealedToken.parse(one["token"]) if one.get("token") is not None else error_of(one["problem"])
        for one in answer["results"]
    ]


def _user_path(user_id: str) -> str:
    return f"/v1/users/{_segment('user_id', user_id)}/tokens"


def _path(token_id: TokenId) -> str:
    return f"{_user_path(token_id.user_id)}/{_segment('provider', token_id.provider)}"


def _segment(name: str, value: str) -> str:
    """Return a part of a path. A proxy that takes `.` or nothing away would turn a deletion into an erasure."""
    if not value.strip("."):
        raise ValueError(f"{name} is empty")
    return quote(value, safe="")


def _query(token_id: TokenId, more: Mapping[str, str] | None = None) -> dict[str, str]:
    query = dict(more or {})
    if token_id.service_type != DEFAULT_SERVICE_TYPE:
        query["service_type"] = token_id.service_type
    return query


def _if_match(version: int | None) -> dict[str, str]:
    return {} if version is None else {"If-Match": f'"{version}"'}


def _time(value: datetime | None) -> str | None:
    if value is not None and value.utcoffset() is None:
        raise ValueError("expires_at needs a time zone")
    return None if value is None else value.isoformat()
