"""Pauses of providers: after an error that concerns every token, no other token is tried for some seconds.

Of a provider whose endpoints are on the host of a token's base URL, each host has a pause of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from app.errors import ProviderError, ProviderMisconfigured
from app.refresh.endpoints import token_endpoint
from app.refresh.providers import OAuthProvider

PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Pause:
    provider: OAuthProvider
    error: ProviderError
    until: float


class ProviderPauses:
    """The last such error of each provider or host. A changed entry ends its pauses: it may be the remedy."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pauses: dict[tuple[str, str | None], _Pause] = {}

    def pause(
        self, provider: OAuthProvider, base_url: str | None, error: ProviderError, *, seconds: float = PAUSE_SECONDS
    ) -> None:
        """Answer with this error for some seconds, at most five minutes."""
        until = self._monotonic() + min(seconds, _LONGEST_PAUSE_SECONDS)
        kept = error.copy()
        kept.__traceback__ = kept.__context__ = None
        self._pauses[_key(provider, base_url)] = _Pause(provider, kept, until)

    def require_open(self, provider: OAuthProvider, base_url: str | None) -> None:
        """Raise the error of a token with this base URL during the pause of its provider or host."""
        key = _key(provider, base_url)
        pause = self._pauses.get(key)
        if pause is None:
            return
        if self._monotonic() >= pause.until or pause.provider != provider:
            del self._pauses[key]
            return
        raise pause.error.copy()


def _key(provider: OAuthProvider, base_url: str | None) -> tuple[str, str | None]:
    host = None
    if provider.uses_base_url:
        with suppress(ProviderMisconfigured):  # a base URL without an endpoint: no host is asked, so none is paused
            host = urlsplit(token_endpoint(provider, base_url)).netloc
    return provider.name, host
