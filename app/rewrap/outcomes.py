"""The outcome of each row in a sweep: counted, reported and audited once, in whichever pass it is met."""

from __future__ import annotations

from collections import Counter
from typing import Final

from app.concurrency import all_of
from app.errors import StoreMisconfigured, VaultError
from app.rewrap.report import SweepObserver, SweepReport
from app.tokens.events import SUCCESS, TokenEvent, TokenEvents
from app.tokens.models import Caller, Rewrap, StoredToken
from app.tokens.row_rewrap import rewrap_event

SWEEP_CALLER: Final = Caller("token-vault-rewrap")
MAXIMUM_REPORTED_ROWS: Final = 10_000


class ReportedRows:
    """Unreadable rows already reported, with their error code.

    Holds at most `MAXIMUM_REPORTED_ROWS`; rows beyond that are reported each time.
    """

    def __init__(self) -> None:
        self._codes: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._codes)

    def add(self, row_id: str, code: str) -> bool:
        """Remember the row; return whether it was not reported with this code before."""
        if self._codes.get(row_id) == code:
            return False
        if row_id in self._codes or len(self._codes) < MAXIMUM_REPORTED_ROWS:
            self._codes[row_id] = code
        return True

    def forget(self, row_id: str) -> None:
        """Forget a row that is readable again, so that its next error is reported."""
        self._codes.pop(row_id, None)


class OutcomeRecorder:
    """Counts outcomes in `report`, shows unreadable rows to `observer`, and leaves an audit event for each outcome.

    `audited` holds the unreadable rows for which earlier sweeps left an event. Without `keeps_events`, in a dry run,
    there are no events.
    """

    def __init__(
        self,
        *,
        report: SweepReport,
        observer: SweepObserver,
        events: TokenEvents,
        audited: ReportedRows,
        keeps_events: bool,
    ) -> None:
        self._report = report
        self._observer = observer
        self._events = events
        self._keeps_events = keeps_events
        self._shown = ReportedRows()
        self._audited = audited
        self._unreadable_in_pass: Counter[str] = Counter()
        self._unreadable_before: Counter[str] = Counter()
        self._unwritten: list[TokenEvent] = []

    def begin_pass(self) -> None:
        """Count unreadable rows anew; those of the last pass count until this one ends."""
        self._unreadable_before, self._unreadable_in_pass = self._report.unreadable, Counter()

    def end_pass(self) -> None:
        """Make this pass's count of unreadable rows the report's."""
        self._report.unreadable = self._unreadable_in_pass

    def rewrapped(self, rewrap: Rewrap) -> None:
        self._audited.forget(rewrap.before.id)
        self._report.rewrapped += 1
        self._keep(rewrap.after, SUCCESS, None, before=rewrap.before)

    def readable(self) -> None:
        """Count a row that a dry run could read."""
        self._report.rewrapped += 1

    def overtaken(self, rows: int = 1) -> None:
        self._report.overtaken += rows

    def in_doubt(self, rows: int) -> None:
        self._report.in_doubt += rows

    def strange(self, rows: int) -> None:
        """Count rows with a scheme that the vault does not write, which no sweep reads."""
        if rows:
            self._unreadable_in_pass[StoreMisconfigured.code] += rows

    def unreadable(self, row_id: str, error: VaultError, row: StoredToken | None) -> None:
        """Note a row that stays as it is; `row` is `None` if its columns are no token."""
        self._unreadable_in_pass[error.code] += 1
        self._report.unreadable = self._unreadable_before | self._unreadable_in_pass  # the larger count of each code
        if not self._shown.add(row_id, error.code):  # an earlier pass met it
            return
        self._observer.unreadable(row_id.encode(errors="backslashreplace").decode(), error)
        if row is not None and self._audited.add(row_id, error.code):
            self._keep(row, error.code, error.detail)

    async def write_events(self) -> None:
        """Write the events kept since the last call; raises `AuditUnavailable`."""
        events, self._unwritten = self._unwritten, []
        await all_of(map(self._events.record, events))

    def _keep(self, row: StoredToken, outcome: str, detail: str | None, *, before: StoredToken | None = None) -> None:
        if self._keeps_events:
            self._unwritten.append(rewrap_event(row, outcome, detail, caller=SWEEP_CALLER, before=before))
