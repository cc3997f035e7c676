# ruff: noqa: ARG002
"""Requests to OAuth providers: refresh, exchange and revoke."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import SecretStr

from app.errors import ProviderUnavailable
from app.refresh.providers import OAuthProvider

TokenTypeHint = Literal["access_token", "refresh_token"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderTokens:
    """The answer of a token endpoint. What the answer leaves out is `None`: an omitted refresh token stays valid."""

    access_token: SecretStr
    refresh_token: SecretStr | None = None
    expires_in_seconds: int | None = None
    refresh_token_expires_in_seconds: int | None = None
    scopes: tuple[str, ...] | None = None


class ProviderClient:
    """Asks providers for tokens. Each method sends at most one request that can spend a refresh token or a code.

    Every method raises `ProviderUnavailable` or `ProviderMisconfigured`.
    """

    async def refresh(
        self, provider: OAuthProvider, *, refresh_token: SecretStr, base_url: str | None, scopes: tuple[str, ...]
    ) -> ProviderTokens:
        """Spend the refresh token; raises `GrantRejected` if the provider refuses it."""
        raise ProviderUnavailable(f"{provider.name} is not asked yet", sent=False)

    async def exchange(
        self,
        provider: OAuthProvider,
        *,
        code: SecretStr,
        redirect_uri: str,
        code_verifier: SecretStr | None,
        base_url: str | None,
    ) -> ProviderTokens:
        """Redeem an authorization code; raises `GrantRejected` if the provider refuses it."""
        raise ProviderUnavailable(f"{provider.name} is not asked yet", sent=False)

    async def revoke(
        self, provider: OAuthProvider, *, token: SecretStr, hint: TokenTypeHint, base_url: str | None
    ) -> None:
        """Revoke one token; raises `RevocationUnsupported` if the provider cannot."""
        raise ProviderUnavailable(f"{provider.name} is not asked yet", sent=False)

    async def close(self) -> None:
        """Close the connections."""
