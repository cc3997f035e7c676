"""Outages of providers, as their answers show them, for the readiness check `providers`."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from app.errors import ProviderError, ProviderMisconfigured, ProviderUnavailable, VaultError
from app.refresh.providers import OAuthProvider
from app.refresh.registry import ProviderRegistry

BELIEVED_FAILURES: Final = 3
FORGOTTEN_SECONDS: Final = 600.0


@dataclass(slots=True)
class _Failures:
    """The failures of one entry since its last usable answer."""

    provider: OAuthProvider
    count: int
    error: ProviderError
    last_at: float


class ProviderOutages:
    """Counts the failures of each provider in a row. Nothing is sent: only requests that are made anyway count.

    An outage ends with the next usable answer, which may refuse a token, with a change of the entry, or ten minutes
    after the last failure, when nobody asks the provider any more.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._failures: dict[str, _Failures] = {}

    @contextmanager
    def observing(self, provider: OAuthProvider) -> Iterator[None]:
        """Count the outcome of the request that the block makes."""
        try:
            yield
        except ProviderUnavailable as error:
            self._failed(provider, error)
            raise
        except ProviderMisconfigured as error:
            if error.concerns_provider:
                self._failed(provider, error)
            raise
        except VaultError:
            self._failures.pop(provider.name, None)
            raise
        else:
            self._failures.pop(provider.name, None)

    def current(self, registry: ProviderRegistry) -> ProviderError | None:
        """Return the last error of a provider whose last three requests have failed, or `None`."""
        for name, failures in list(self._failures.items()):
            is_old = self._monotonic() - failures.last_at > FORGOTTEN_SECONDS
            if is_old or registry.find(name) != failures.provider:
                del self._failures[name]
            elif failures.count >= BELIEVED_FAILURES:
                return failures.error.copy()
        return None

    def _failed(self, provider: OAuthProvider, error: ProviderError) -> None:
        before = self._failures.get(provider.name)
        count = before.count + 1 if before is not None and before.provider == provider else 1
        kept = error.copy()
        kept.__traceback__ = kept.__context__ = None
        self._failures[provider.name] = _Failures(provider, count, kept, self._monotonic())


def providers_check(registry: ProviderRegistry, outages: ProviderOutages) -> Callable[[], Awaitable[None]]:
    """Return a check that fails while the list of providers is invalid or a provider is in an outage."""

    async def check() -> None:
        if registry.problem is not None:
            raise ProviderMisconfigured(registry.problem)
        error = outages.current(registry)
        if error is not None:
            raise error

    return check
