"""Presets: what is known of each provider, in the members of a registry entry. An entry overrides single members.

Every fact stands beside its source. `docs/refresh.md` explains the limits that follow from them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """`members` are defaults of an entry, `fixed` are fields of `OAuthProvider` that no entry sets."""

    members: Mapping[str, Any]
    fixed: Mapping[str, Any]
    sources: tuple[str, ...]


# PulsePlan's names of the same grants
ALIASES: Final[Mapping[str, str]] = {"gmail": "google", "outlook": "microsoft"}

_GOOGLE: Final = Preset(
    members={
        "token_url": "https://oauth2.googleapis.com/token",
        "revoke_url": "https://oauth2.googleapis.com/revoke",
        "discovery_url": "https://accounts.google.com/.well-known/openid-configuration",
        "client_auth": "post",
        # a refresh answers without a refresh token: the old one stays
        "rotation": "none",
        "default_lifetime_seconds": 3600,
        # unused for six months, it ends (seven days after consent while the app's status is "Testing")
        "idle_days": 180,
        # an expired, revoked or withdrawn grant, and session control of a Workspace domain, are all invalid_grant
        "reauth_errors": ["invalid_grant"],
    },
    # the token alone authorises its revocation, and revoking one may end the whole grant of the user
    fixed={"revocation": "token_only"},
    sources=(
        "https://developers.google.com/identity/protocols/oauth2#expiration",
        "https://developers.google.com/identity/protocols/oauth2/web-server#offline",
        "https://developers.google.com/identity/protocols/oauth2/web-server#tokenrevoke",
    ),
)

_MICROSOFT: Final = Preset(
    members={
        # `{tenant}` is the entry's member `tenant`
        "token_url": "https://login.microsoftonline.com/{tenant}/oauth2/v2.0/token",
        "discovery_url": "https://login.microsoftonline.com/{tenant}/v2.0/.well-known/openid-configuration",
        "client_auth": "post",
        # "replace themselves with a fresh token upon every use"; the old one is not revoked
        "rotation": "reusable",
        "default_lifetime_seconds": 3600,
        "idle_days": 90,
        # codes are for programs, descriptions may change at any time and are never read
        "reauth_errors": ["invalid_grant", "interaction_required", "consent_required", "login_required"],
    },
    # there is no endpoint that revokes one token
    fixed={"revocation": "none"},
    sources=(
        "https://learn.microsoft.com/en-us/entra/identity-platform/refresh-tokens",
        "https://learn.microsoft.com/en-us/entra/identity-platform/v2-oauth2-auth-code-flow#refresh-the-access-token",
        "https://learn.microsoft.com/en-us/entra/identity-platform/reference-error-codes#handling-error-codes-in-your-application",
    ),
)

_CANVAS: Final = Preset(
    members={
        "client_auth": "post",
        # the answer has no refresh token: the old one stays
        "rotation": "none",
        # refreshing ends the old access token at once, so a refresh ahead of need would break a caller at work
        "invalidates_old_access_token": True,
        "refresh_margin_seconds": 0,
        "default_lifetime_seconds": 3600,
        # an unknown refresh token is "invalid_request: refresh_token not found", a bad code is invalid_grant
        "reauth_errors": ["invalid_grant", "invalid_request"],
    },
    fixed={
        # each school has its own host: the token's base_url
        "token_path": "/login/oauth2/token",
        "revoke_path": "/login/oauth2/token",
        # DELETE with the access token ends the token, and the refresh token of the same record with it
        "revocation": "delete_with_access_token",
    },
    sources=(
        "https://developerdocs.instructure.com/services/canvas/oauth2/file.oauth#using-refresh-tokens",
        "https://developerdocs.instructure.com/services/canvas/oauth2/file.oauth_endpoints#post-login-oauth2-token",
        "https://developerdocs.instructure.com/services/canvas/oauth2/file.oauth_endpoints#delete-login-oauth2-token",
        "https://github.com/instructure/canvas-lms/blob/master/lib/canvas/oauth/grant_types/refresh_token.rb",
    ),
)

_NOTION: Final = Preset(
    members={
        "token_url": "https://api.notion.com/v1/oauth/token",
        "revoke_url": "https://api.notion.com/v1/oauth/revoke",
        "client_auth": "basic",
        "body": "json",
        # a refresh answers with a new pair; whether the old one keeps working is not documented, so it counts as spent
        "rotation": "single_use",
        "default_lifetime_seconds": 3600,
        # "an average of three requests per second" for each connection, of all kinds
        "requests_per_second": 3,
        "reauth_errors": ["invalid_grant"],
    },
    fixed={"revocation": "rfc7009", "headers": (("Notion-Version", "2022-06-28"),)},
    sources=(
        "https://developers.notion.com/reference/refresh-a-token",
        "https://developers.notion.com/reference/create-a-token",
        "https://developers.notion.com/reference/revoke-token",
        "https://developers.notion.com/reference/request-limits",
    ),
)

_APPLE: Final = Preset(
    members={
        "token_url": "https://appleid.apple.com/auth/token",
        "revoke_url": "https://appleid.apple.com/auth/revoke",
        "discovery_url": "https://appleid.apple.com/.well-known/openid-configuration",
        # the client secret is a JWT, signed with ES256 by the team's private key
        "client_auth": "apple",
        # a refresh answers without a refresh token: the old one stays, and does not expire
        "rotation": "none",
        "default_lifetime_seconds": 3600,
        # "verify up to once a day": more often, and Apple may throttle
        "minimum_interval_seconds": 86_400,
        "reauth_errors": ["invalid_grant"],
    },
    fixed={"revocation": "rfc7009"},
    sources=(
        "https://developer.apple.com/documentation/signinwithapplerestapi/generate-and-validate-tokens",
        "https://developer.apple.com/documentation/accountorganizationaldatasharing/creating-a-client-secret",
        "https://developer.apple.com/documentation/signinwithapple/verifying-a-user",
        "https://developer.apple.com/documentation/signinwithapplerestapi/revoke-tokens",
    ),
)

PRESETS: Final[Mapping[str, Preset]] = {
    "google": _GOOGLE,
    "microsoft": _MICROSOFT,
    "canvas": _CANVAS,
    "notion": _NOTION,
    "apple": _APPLE,
}
