"""The provider registry: the configured OAuth providers by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from app.refresh.providers import OAuthProvider

ALIASES: Final[Mapping[str, str]] = {"gmail": "google", "outlook": "microsoft"}


class ProviderRegistry:
    """Finds the OAuth provider of a token's provider name; an alias finds the entry that it stands for."""

    def __init__(self, *, providers: Iterable[OAuthProvider] = ()) -> None:
        self._providers = {provider.name: provider for provider in providers}

    def find(self, provider: str) -> OAuthProvider | None:
        """Return the entry of this provider, or of the one that the name is an alias of."""
        return self._providers.get(provider) or self._providers.get(ALIASES.get(provider, ""))

    def names(self) -> tuple[str, ...]:
        """Return the names of the entries, sorted, without aliases."""
        return tuple(sorted(self._providers))
