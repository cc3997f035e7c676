"""OAuth providers as the refresh sees them: endpoints, client authentication, and what is known of their tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Literal

from pydantic import SecretStr

DEFAULT_LEASE_SECONDS: Final = 60
# While one replica holds the answer of a provider and the store is down, no other may spend the old refresh token.
SINGLE_USE_LEASE_SECONDS: Final = 180


class Rotation(StrEnum):
    """What a refresh does to the refresh token.

    `none`: it stays. `reusable`: the answer has a new one, and the old one keeps working. `single_use`: the answer has
    a new one, and a second use of the old one fails, and with some providers ends the whole grant.
    """

    NONE = "none"
    REUSABLE = "reusable"
    SINGLE_USE = "single_use"


class ClientAuthentication(StrEnum):
    """How the vault proves to a token endpoint which client it is.

    `basic` and `post` send the client secret (RFC 6749, section 2.3.1), `private_key_jwt` sends an assertion signed
    with a private key (RFC 7523), and `apple` sends such a JWT as the client secret.
    """

    BASIC = "basic"
    POST = "post"
    PRIVATE_KEY_JWT = "private_key_jwt"
    APPLE = "apple"

    @property
    def signs(self) -> bool:
        """Whether the client secret is a private key in PEM."""
        return self in {ClientAuthentication.PRIVATE_KEY_JWT, ClientAuthentication.APPLE}


class Revocation(StrEnum):
    """How a provider revokes a token.

    `rfc7009`: POST with client authentication (RFC 7009). `token_only`: the same without client authentication.
    `delete_with_access_token`: DELETE, authorised by the access token itself. `none`: there is no endpoint.
    """

    RFC7009 = "rfc7009"
    TOKEN_ONLY = "token_only"  # noqa: S105  no token
    DELETE_WITH_ACCESS_TOKEN = "delete_with_access_token"  # noqa: S105  no token
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class OAuthProvider:
    """One entry of the provider registry, complete and valid.

    The endpoints are `token_url` and `revoke_url`, or, if `token_url` is `None`, `token_path` and `revoke_path` on the
    host of the token's base URL, which must be one of `allowed_hosts`.

    `client_secrets` holds the current secret first, then earlier ones, which are tried if the current one is refused.
    `signing_algorithm`, `signing_key_id`, `team_id` and `audience` are for the client authentications that sign.
    `reauth_errors` are the error codes that mean that the user must sign in again. `idle_days` is the number of days
    after which an unused refresh token ends, `minimum_interval_seconds` the shortest time between two refreshes of a
    token, `requests_per_second` the limit of background refreshes. `default_lifetime_seconds` is the lifetime of an
    access token whose answer does not say it.
    """

    name: str
    token_url: str | None = None
    token_path: str | None = None
    revoke_url: str | None = None
    revoke_path: str | None = None
    discovery_url: str | None = None
    allowed_hosts: frozenset[str] = frozenset()
    allow_insecure: bool = False

    client_id: str
    client_auth: ClientAuthentication = ClientAuthentication.BASIC
    client_secrets: tuple[SecretStr, ...] = field(repr=False)
    signing_algorithm: str | None = None
    signing_key_id: str | None = None
    team_id: str | None = None
    audience: str | None = None

    body: Literal["form", "json"] = "form"
    headers: tuple[tuple[str, str], ...] = ()
    send_scope: bool = False
    rotation: Rotation = Rotation.SINGLE_USE
    revocation: Revocation = Revocation.NONE
    invalidates_old_access_token: bool = False
    default_lifetime_seconds: int = 3600
    refresh_margin_seconds: int = 300
    lease_seconds: int = SINGLE_USE_LEASE_SECONDS
    minimum_interval_seconds: int = 0
    requests_per_second: float | None = None
    idle_days: int | None = None
    reauth_errors: frozenset[str] = frozenset()

    @property
    def revokes(self) -> bool:
        """Whether there is an endpoint that revokes a token."""
        return self.revocation is not Revocation.NONE and (self.revoke_url is not None or self.uses_base_url)

    @property
    def uses_base_url(self) -> bool:
        """Whether the endpoints are on the host of the token's base URL."""
        return self.token_url is None
