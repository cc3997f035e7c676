"""The sweep: moves every token to the primary key while others read and write.

It can run at any time, be killed at any moment, be started again, and run several times at once, because each row moves
in one conditional write that holds only for the row that was decrypted. It keeps no state of its own: the column
`encryption_scheme` says what is left to do. It begins and ends with a count; where there are too many rows for
the store to count in time it moves them all the same, and says that nobody has counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from uuid import uuid4

from app.concurrency import Tasks, all_of
from app.errors import (
    CredentialsDenied,
    EncryptionError,
    InvalidRequest,
    KeyUnavailable,
    StoreMisconfigured,
    StoreTimeout,
    VaultError,
)
from app.rewrap.report import ReportedRows, SweepObserver, SweepRecord, SweepReport
from app.rewrap.resealer import PrimaryDeniedError, Resealer
from app.rewrap.retry import Retry, StoppedError
from app.rewrap.writer import RewrapWriter
from app.tokens import transitions
from app.tokens.census import Census
from app.tokens.cipher import SealedSecrets
from app.tokens.events import TokenEvents
from app.tokens.models import Rewrap, StoredToken, UnreadableRow
from app.tokens.repository import TokenRepository

PAGE_ROWS: Final = 200
CONCURRENT_PAGES: Final = 3
RETRY_SECONDS: Final = 300.0
_MAXIMUM_PASSES: Final = 20
_BETWEEN_PASSES_SECONDS: Final = 0.1
_COUNT_WHEN_STOPPED_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """How a sweep goes about it.

    `rows_per_second` limits the load on KMS, which is asked about once or twice for a row. `limit` ends the sweep after
    so many rows; those that cannot be read do not count. `dry_run` opens every row and writes none. `scattered` begins
    at a random row, so that sweeps that run at once seldom take the same rows: whoever comes second has opened and
    sealed them in vain. While KMS or the store is unavailable the sweep waits, at most `patience_seconds` for one
    thing.
    """

    provider: str | None = None
    limit: int | None = None
    rows_per_second: float | None = None
    dry_run: bool = False
    scattered: bool = False
    deadline_seconds: float | None = None
    patience_seconds: float = RETRY_SECONDS


class Sweep:
    """One sweep; `run` it once. `recorded` knows of which unreadable rows those before it have left a record."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        resealer: Resealer,
        events: TokenEvents,
        observer: SweepObserver,
        plan: SweepPlan,
        recorded: ReportedRows | None = None,
    ) -> None:
        self._tokens = tokens
        self._resealer = resealer
        self._events = events
        self._observer = observer
        self._plan = plan
        self._report = SweepReport()
        self._record = SweepRecord(
            report=self._report,
            observer=observer,
            events=events,
            recorded=ReportedRows() if recorded is None else recorded,
            keeps_events=not plan.dry_run,
        )
        self._patience = Retry(seconds=plan.patience_seconds, per_second=plan.rows_per_second, on_wait=observer.waiting)
        self._writer = RewrapWriter(
            tokens=tokens, patience=self._patience, report=self._report, on_moved=self._record.moved
        )
        self._pages = asyncio.Semaphore(CONCURRENT_PAGES)
        self._rows = asyncio.Semaphore(resealer.concurrent_rows)
        # at a low rate a page is about a second's rows: what is read is soon written, and little is lost by stopping
        self._page_rows = max(1, int(min(PAGE_ROWS, plan.rows_per_second or PAGE_ROWS)))
        self._proven = self._begun = False

    def stop(self, reason: str = "it was told to stop") -> None:
        """Let what is being written finish, take no further row, and end."""
        self._patience.stop(reason)

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._patience.stopped

    async def run(self) -> SweepReport:
        """Move every row that is due, and report; call it once.

        Raises a `VaultError` where no waiting helps: the primary's key is denied, the store refuses everything, or what
        was done could not be recorded.
        """
        began = time.monotonic()
        deadline = None
        if self._plan.deadline_seconds is not None:
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(self._plan.deadline_seconds, self.stop, "its time was over")
        try:
            await self._run()
        except StoppedError as stopped:
            self._report.stopped = stopped.reason
            await self._count_what_is_left()
        except VaultError:
            if self._begun:
                await self._count_what_is_left()
                self._end(began)
            raise
        finally:
            if deadline is not None:
                deadline.cancel()
        self._end(began)
        return self._report

    def _end(self, began: float) -> None:
        self._report.seconds = time.monotonic() - began
        self._observer.progressed(self._report)

    async def _run(self) -> None:
        report = self._report
        await self._patience.call(self._resealer.prove_primary)  # until then its scheme may not be known
        self._proven = True
        census = await self._patience.call(self._counted)
        report.due = None if census is None else census.due
        self._begun = True
        self._observer.progressed(report)
        for _ in range(_MAXIMUM_PASSES):
            self._record.begin_pass()
            before = report.moved + report.overtaken
            for scheme in await self._due_schemes(census):
                await self._walk(scheme)
            self._record.end_pass()
            census = await self._patience.call(self._counted)
            report.remaining = None if census is None else census.due
            if census is not None:
                over = (census.due or 0) <= report.unreadable.total()
            else:
                over = report.moved + report.overtaken == before
            if over or self._plan.dry_run:
                return
            await self._patience.pause(
                _BETWEEN_PASSES_SECONDS
            )  # rows that others wrote meanwhile, under another key or none
        reason = "others keep writing rows under another key"
        raise StoppedError(reason)

    async def _counted(self) -> Census | None:
        """Count, or return `None` where the store cannot in its time; once, for each attempt is a scan."""
        try:
            return await self._patience.while_running(self._census())
        except StoreTimeout:
            return None

    async def _count_what_is_left(self) -> None:
        """Count after a stop, for a moment, if the primary's scheme is known; else nobody knows how many are left."""
        if self._proven:
            self._report.remaining = None
            with contextlib.suppress(VaultError, TimeoutError):
                async with asyncio.timeout(_COUNT_WHEN_STOPPED_SECONDS):
                    self._report.remaining = (await self._census()).due

    async def _census(self) -> Census:
        lines = await self._tokens.census(provider=self._plan.provider)
        return Census.of(lines, primary_scheme=self._resealer.primary_scheme)

    async def _due_schemes(self, census: Census | None) -> list[str | None]:
        if census is not None:
            return census.due_schemes
        schemes = await self._patience.call(self._tokens.schemes)
        return [scheme for scheme in schemes if scheme != self._resealer.primary_scheme]

    async def _walk(self, scheme: str | None) -> None:
        """Take the rows of one scheme page by page, several pages at a time."""
        spans: list[tuple[str | None, str | None]] = [(None, None)]
        if self._plan.scattered:
            middle = str(uuid4())
            spans = [(middle, None), (None, middle)]
        async with Tasks() as tasks:
            for after, last in spans:
                while page := await self._patience.call(self._next_page, scheme, after, last):
                    after = page[-1].id  # noqa: PLW2901  the rest of the span
                    await self._pages.acquire()
                    if self._plan.limit is None:
                        tasks.start(self._move(page))
                    else:  # how many rows may follow is known only when these have moved
                        await self._move(page)
                    tasks.raise_first()

    async def _next_page(
        self, scheme: str | None, after: str | None, last: str | None
    ) -> list[StoredToken | UnreadableRow]:
        left = self._page_rows
        if self._plan.limit is not None:
            left = min(left, self._plan.limit - self._report.moved - self._report.overtaken)
        if left <= 0:
            reason = f"the limit of {self._plan.limit} rows is reached"
            raise StoppedError(reason)
        page = await self._tokens.page(scheme, after=after, limit=left, provider=self._plan.provider)
        return [row for row in page if last is None or row.id <= last]

    async def _move(self, page: Sequence[StoredToken | UnreadableRow]) -> None:
        try:
            await self._patience.call(self._require_record)
            rewraps = [rewrap for rewrap in await all_of(map(self._prepared, page)) if rewrap is not None]
            refused = await self._writer.write(rewraps)
            if refused and len(refused) == len(rewraps):  # it may not be about these rows
                await self._patience.call(self._prove_store)
            for rewrap, error in refused:
                self._record.unreadable(rewrap.before.id, error, rewrap.before)
        finally:
            self._pages.release()
            await self._record.write()
        self._observer.progressed(self._report)

    async def _prove_store(self) -> None:
        """Raise a `StoreError` where the store takes no rewrap at all."""
        await self._tokens.check()
        await self._tokens.replace_ciphertexts([])

    async def _require_record(self) -> None:
        self._events.require_open()

    async def _prepared(self, row: StoredToken | UnreadableRow) -> Rewrap | None:
        """Return the row under the new key, or `None` where there is nothing to write."""
        if isinstance(row, UnreadableRow):
            self._record.unreadable(row.id, StoreMisconfigured(row.detail), None)
            return None
        async with self._rows:
            await self._patience.turn()
            try:
                sealed = await self._patience.call(self._resealed, row)
            except PrimaryDeniedError as denied:
                raise denied.error from None
            except (EncryptionError, InvalidRequest) as error:
                self._record.unreadable(row.id, error, row)
                return None
        if sealed is None:
            self._report.moved += 1
            return None
        if sealed.access.scheme == row.encryption_scheme:
            return None
        return Rewrap(row, transitions.rewrapped(row, sealed))

    async def _resealed(self, row: StoredToken) -> SealedSecrets | None:
        """Return the row's secrets under the primary; of a dry run, which only opens them, `None`.

        Credentials that expire half-way are no row's fault, and new ones may come: that is waited for.
        """
        try:
            return await self._resealer.reseal(row, open_only=self._plan.dry_run)
        except (CredentialsDenied, PrimaryDeniedError) as error:
            denied = error.error if isinstance(error, PrimaryDeniedError) else error
            if isinstance(denied, CredentialsDenied):
                raise KeyUnavailable(denied.detail) from None
            raise
