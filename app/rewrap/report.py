"""The report of a sweep, and the observer that follows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from app.errors import VaultError


@dataclass(slots=True)
class SweepReport:
    """Counts of a sweep so far. The sweep changes them while it runs.

    - `due`: rows that were not under the primary at the beginning; `None` until counted, or if it cannot be counted
    - `legacy`: those among `due` in PulsePlan's formats, as far as rows without a scheme show; `None` like `due`
    - `rewrapped`: rows that this sweep wrote; in a dry run, rows that it could read
    - `overtaken`: rows that somebody else changed or deleted after the sweep had read them
    - `unreadable`: rows that stay as they are, by error code
    - `in_doubt`: rows whose last write was sent and never answered
    - `remaining`: rows not under the primary at the end, counted in the store; `None` if that failed
    - `stopped`: why the sweep ended early; `None` if it ended by itself

    `due`, `legacy` and `remaining` count the rows of every shard, without rows that the plan leaves alone.
    """

    due: int | None = None
    legacy: int | None = None
    rewrapped: int = 0
    overtaken: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    in_doubt: int = 0
    remaining: int | None = None
    stopped: str | None = None
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """Rows whose outcome is known."""
        return self.rewrapped + self.overtaken + self.unreadable.total()


class SweepObserver(Protocol):
    """Follows a sweep while it runs. No argument holds a secret."""

    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...


class SilentObserver:
    """`SweepObserver` that does nothing."""

    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...
