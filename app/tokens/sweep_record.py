"""What a sweep tells, counts and records of each row: once, however often it comes by."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from app.tokens.events import SUCCESS
from app.tokens.models import Caller
from app.tokens.side_by_side import all_of
from app.tokens.single_rewrap import rewrap_event
from app.tokens.told import Told

if TYPE_CHECKING:
    from app.errors import VaultError
    from app.tokens.events import TokenEvent, TokenEvents
    from app.tokens.models import Rewrap, StoredToken
    from app.tokens.sweep_report import SweepObserver, SweepReport

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
        recorded: Told,
        keeps_events: bool,
    ) -> None:
        self._report = report
        self._observer = observer
        self._events = events
        self._keeps_events = keeps_events
        self._found: Counter[str] = Counter()
        self._found_before: Counter[str] = Counter()
        self._told = Told()
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
        if not self._told.is_news(row_id, error.code):  # a later pass comes by again
            return
        self._observer.unreadable(row_id, error)
        if row is not None and self._recorded.is_news(row_id, error.code):
            self._keep(row, error.code, error.detail)

    async def write(self) -> None:
        """Record what has been done since the last call; raises `AuditUnavailable`."""
        events, self._unrecorded = self._unrecorded, []
        await all_of(map(self._events.record, events))

    def _keep(self, row: StoredToken, outcome: str, detail: str | None) -> None:
        if self._keeps_events:
            self._unrecorded.append(rewrap_event(row, outcome, detail, caller=CALLER))
