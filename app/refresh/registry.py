"""The provider registry: the configured OAuth providers by name, kept up to date with their files."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import structlog

from app.refresh.presets import ALIASES
from app.refresh.provider_list import LoadedProviders, ProviderListError, ProviderSource
from app.refresh.providers import OAuthProvider

RELOAD_SECONDS: Final = 1.0
_log = structlog.get_logger()


class ProviderRegistry:
    """Finds the OAuth provider of a token's provider name; an alias finds the entry that it stands for.

    At most once every `reload_seconds` the status of the list and of every file that it names is checked, and all are
    read again if one has changed, so a corrected client secret needs no restart. A list that has become invalid
    changes nothing: the last good one stays in use, `problem` says so, and the list is not parsed again before it
    changes. Raises `ProviderListError` if the first list is invalid.
    """

    def __init__(
        self,
        *,
        providers: Iterable[OAuthProvider] = (),
        source: ProviderSource | None = None,
        reload_seconds: float = RELOAD_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._reload_seconds = reload_seconds
        self._monotonic = monotonic
        self._problem: str | None = None
        self._status: dict[Path, tuple[int, ...] | None] | None = None
        loaded = LoadedProviders(tuple(providers), frozenset()) if source is None else source.load()
        self._use(loaded)
        self._next_check = monotonic() + reload_seconds

    @property
    def problem(self) -> str | None:
        """The problem with the current list, while an earlier one is in use; or `None`."""
        self._reload_if_due()
        return self._problem

    def find(self, provider: str) -> OAuthProvider | None:
        """Return the entry of this provider, or of the one that the name is an alias of."""
        self._reload_if_due()
        return self._providers.get(provider) or self._providers.get(ALIASES.get(provider, ""))

    def names(self) -> tuple[str, ...]:
        """Return the names of the entries, sorted, without aliases."""
        self._reload_if_due()
        return tuple(sorted(self._providers))

    def warnings(self) -> list[str]:
        """Return a warning for each entry that permits unprotected connections; those of a later list are logged."""
        self._reload_if_due()
        return _warnings(self._providers.values())

    def _use(self, loaded: LoadedProviders) -> None:
        self._providers = {provider.name: provider for provider in loaded.providers}
        self._files = loaded.files

    def _reload_if_due(self) -> None:
        now = self._monotonic()
        if self._source is None or now < self._next_check:
            return
        self._next_check = now + self._reload_seconds
        status = {file: _status(file) for file in self._files}
        if status == self._status:
            return
        try:
            loaded = self._source.load()
        except ProviderListError as error:
            self._refuse(f"the list of OAuth providers is invalid, and the last valid one stays in use: {error}")
            self._status = {} if error.may_pass or error.files != self._files else status
            self._files = error.files
            return
        if loaded.files != self._files:  # read once more, so that no change in between is missed
            status = {}
        if loaded.providers != tuple(self._providers.values()):
            _log.info("oauth_providers_loaded", keys=len(loaded.providers))
            known = _warnings(self._providers.values())
            for warning in _warnings(loaded.providers):
                if warning not in known:
                    _log.warning("setting_is_weak", reason=warning)
        self._use(loaded)
        self._status, self._problem = status, None

    def _refuse(self, problem: str) -> None:
        if problem != self._problem:
            _log.error("oauth_providers_refused", reason=problem)
        self._problem = problem


def _warnings(providers: Iterable[OAuthProvider]) -> list[str]:
    return [
        f"OAUTH_PROVIDERS: {name} has allow_insecure: its secrets and tokens may cross the network unencrypted, "
        "and its URL may lead into the private network"
        for name in sorted(provider.name for provider in providers if provider.allow_insecure)
    ]


def _status(file: Path) -> tuple[int, ...] | None:
    try:
        stat = file.stat()
    except (OSError, ValueError):
        return None
    return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino
