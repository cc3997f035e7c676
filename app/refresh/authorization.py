"""The authorization of a user, as it comes back from a provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import SecretStr


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """A user's consent as it comes back to the redirect URI, and what to store beside the tokens.

    `code_verifier` is that of PKCE (RFC 7636).
    """

    code: SecretStr = field(repr=False)
    redirect_uri: str
    code_verifier: SecretStr | None = field(default=None, repr=False)
    base_url: str | None = None
    email: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
