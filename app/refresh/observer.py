"""Observation of refreshes, for the metrics."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

import structlog

_log = structlog.get_logger()


class RefreshObserver(Protocol):
    """Gets what happens between the vault and its providers; must neither wait nor raise.

    `provider` is the name of an entry in the registry, never a caller's text.
    """

    def refreshed(self, provider: str, outcome: str, seconds: float) -> None:
        """Get the outcome of a refresh, as its audit event has it, and its duration."""
        ...

    def taken_over(self, provider: str) -> None:
        """Get that a refresh has taken the lease of one that did not end it."""
        ...

    def reauthentication_needed(self, provider: str, *, outcome_lost: bool) -> None:
        """Get that a token now needs its user; `outcome_lost` if an earlier answer was lost, not withdrawn."""
        ...

    def unwritten(self, provider: str, change: int) -> None:
        """Get that there is one more (1) or one fewer (-1) answer of a provider that the store has not taken."""
        ...

    def answered(self, provider: str, seconds: float) -> None:
        """Get the duration of one request to a provider, whether or not it succeeded."""
        ...

    def spooled(self, *, waiting: int, refused: int) -> None:
        """Get the numbers of files in the spool whose process has ended: those to try again, and unusable ones."""
        ...

    def overdue(self, provider: str, seconds: float) -> None:
        """Get how long the oldest due token waited when a background round began; 0 if none was due."""
        ...


class Unobserved:
    """`RefreshObserver` that does nothing."""

    def refreshed(self, provider: str, outcome: str, seconds: float) -> None: ...

    def taken_over(self, provider: str) -> None: ...

    def reauthentication_needed(self, provider: str, *, outcome_lost: bool) -> None: ...

    def unwritten(self, provider: str, change: int) -> None: ...

    def answered(self, provider: str, seconds: float) -> None: ...

    def spooled(self, *, waiting: int, refused: int) -> None: ...

    def overdue(self, provider: str, seconds: float) -> None: ...


class Unwritten:
    """Context manager around the write of a provider's answer: counts it as unwritten after the first failure."""

    def __init__(self, observer: RefreshObserver, provider: str) -> None:
        self._observer = observer
        self._provider = provider
        self._since: float | None = None

    def is_new(self) -> bool:
        """Note a failed write; return whether it is the first."""
        if self._since is not None:
            return False
        self._since = time.monotonic()
        self._observer.unwritten(self._provider, 1)
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._since is not None:
            self._observer.unwritten(self._provider, -1)
            if error is None:
                seconds = round(time.monotonic() - self._since, 2)
                _log.warning("provider_answer_settled", provider=self._provider, seconds=seconds)
