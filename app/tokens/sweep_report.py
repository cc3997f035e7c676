"""What a sweep has to say of itself, and to whom."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from app.errors import VaultError


@dataclass(slots=True)
class SweepReport:
    """What a sweep has done so far.

    `due` were not under the primary at the beginning, `None` until that is counted, or if it cannot be. `moved` rows
    are now, or would be for all a dry run knows; `overtaken` ones somebody changed or deleted meanwhile; `unreadable`
    ones stay as they are, by error code; `in_doubt` ones were written at the very end without an answer. `remaining` is
    counted in the store afterwards, `None` where that failed. `stopped` says why the sweep ended before it was through,
    `None` where it was through.
    """

    due: int | None = None
    moved: int = 0
    overtaken: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    in_doubt: int = 0
    remaining: int | None = None
    stopped: str | None = None
    seconds: float = 0.0


class SweepObserver(Protocol):
    """Hears of a sweep while it runs. Nothing it is given holds a secret."""

    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...
