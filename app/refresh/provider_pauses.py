"""Pauses of providers: after an error that concerns every token, no other token is tried for some seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from app.errors import ProviderError
from app.refresh.providers import OAuthProvider

PAUSE_SECONDS: Final = 5.0
_LONGEST_PAUSE_SECONDS: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Pause:
    provider: OAuthProvider
    error: ProviderError
    until: float


class ProviderPauses:
    """The last such error of each provider. A changed entry in the registry ends its pause: it may be the remedy."""

    def __init__(self, *, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._pauses: dict[str, _Pause] = {}

    def pause(self, provider: OAuthProvider, error: ProviderError, *, seconds: float = PAUSE_SECONDS) -> None:
        """Answer with this error for some seconds, at most five minutes."""
        until = self._monotonic() + min(seconds, _LONGEST_PAUSE_SECONDS)
        kept = error.copy()
        kept.__traceback__ = kept.__context__ = None
        self._pauses[provider.name] = _Pause(provider, kept, until)

    def require_open(self, provider: OAuthProvider) -> None:
        """Raise the provider's error during its pause."""
        pause = self._pauses.get(provider.name)
        if pause is None:
            return
        if self._monotonic() >= pause.until or pause.provider != provider:
            del self._pauses[provider.name]
            return
        raise pause.error.copy()
