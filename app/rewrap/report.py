"""Counts, reported rows and audit events of a sweep."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Protocol

from app.concurrency import all_of
from app.errors import VaultError
from app.tokens.events import SUCCESS, TokenEvent, TokenEvents
from app.tokens.models import Caller, Rewrap, StoredToken
from app.tokens.row_rewrap import rewrap_event

# --- Which rows were told to be unreadable, and why.

REMEMBERED: Final = 10_000


class ReportedRows:
    """Remembers what was told, so that it is told once. Once it holds `REMEMBERED` rows, others are told each time."""

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def is_new(self, row_id: str, code: str) -> bool:
        """Return whether the row has not been told with this code, and remember it."""
        if self._codes.get(row_id) == code:
            return False
        if row_id in self._codes or len(self._codes) < REMEMBERED:
            self._codes[row_id] = code
        return True

    def forget(self, row_id: str) -> None:
        """Forget a row that was read, so that it is told again if it breaks again."""
        self._codes.pop(row_id, None)


# --- What a sweep has to say of itself, and to whom.


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


# --- What a sweep tells, counts and records of each row: once, however often it comes by.

CALLER: Final = Caller("token-vault-rewrap")


class SweepRecord:
    """Keeps `report` true, tells `observer` of unreadable rows, and leaves events of what was done.

    A dry run (`keeps_events` false) does nothing and leaves none. `recorded` knows of which unreadable rows the sweeps
    before this one have left an event.
    """

    def __init__(
        self,
        *,
        report: SweepReport,
        observer: SweepObserver,
        events: TokenEvents,
        recorded: ReportedRows,
        keeps_events: bool,
    ) -> None:
        self._report = report
        self._observer = observer
        self._events = events
        self._keeps_events = keeps_events
        self._found: Counter[str] = Counter()
        self._found_before: Counter[str] = Counter()
        self._told = ReportedRows()
        self._recorded = recorded
        self._unrecorded: list[TokenEvent] = []

    def begin_pass(self) -> None:
        """Count unreadable rows anew; until this pass is through those of the last one are still there."""
        self._found_before, self._found = self._report.unreadable, Counter()

    def end_pass(self) -> None:
        """Take what this pass has found for what there is."""
        self._report.unreadable = self._found

    def moved(self, rewrap: Rewrap) -> None:
        self._recorded.forget(rewrap.before.id)
        self._report.moved += 1
        self._keep(rewrap.after, SUCCESS, None)

    def unreadable(self, row_id: str, error: VaultError, row: StoredToken | None) -> None:
        """Note a row that stays as it is; `row` is `None` where it is not even a token."""
        self._found[error.code] += 1
        self._report.unreadable = self._found_before | self._found  # whichever pass has met more of them
        if not self._told.is_new(row_id, error.code):  # a later pass comes by again
            return
        self._observer.unreadable(row_id, error)
        if row is not None and self._recorded.is_new(row_id, error.code):
            self._keep(row, error.code, error.detail)

    async def write(self) -> None:
        """Record what has been done since the last call; raises `AuditUnavailable`."""
        events, self._unrecorded = self._unrecorded, []
        await all_of(map(self._events.record, events))

    def _keep(self, row: StoredToken, outcome: str, detail: str | None) -> None:
        if self._keeps_events:
            self._unrecorded.append(rewrap_event(row, outcome, detail, caller=CALLER))
