"""The sweep: rewrap every token that is not under the primary, while others read and write.

A sweep may run at any time, be killed at any moment, be started again, and run several times at once: each row is
rewrapped in one conditional write that holds only for the row that was decrypted. It keeps no state outside the table,
because the column `encryption_scheme` says which rows are due. It begins and ends with a count; if the store cannot
count so many rows in time the sweep rewraps them all the same and reports the count as unknown.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from app.concurrency import all_of
from app.errors import (
    CredentialsDenied,
    EncryptionError,
    InvalidRequest,
    KeyDenied,
    KeyUnavailable,
    StoreMisconfigured,
    StoreTimeout,
    VaultError,
)
from app.rewrap.key_ranges import KeyRange, Shard, scattered_ranges
from app.rewrap.outcomes import OutcomeRecorder, ReportedRows
from app.rewrap.report import SweepObserver, SweepReport
from app.rewrap.retry import Retry, StoppedError
from app.rewrap.writer import RewrapWriter
from app.security.schemes import is_written
from app.tokens import transitions
from app.tokens.census import Census
from app.tokens.cipher import Binding, SealedSecrets, TokenCipher
from app.tokens.events import TokenEvents
from app.tokens.legacy_rows import find_copies, is_legacy
from app.tokens.models import Rewrap, StoredToken, UnreadableRow
from app.tokens.repository import TokenRepository

Page = Sequence[StoredToken | UnreadableRow]
PAGE_ROWS: Final = 200
CONCURRENT_PAGES: Final = 4
CONCURRENT_ROWS: Final = 32
RETRY_SECONDS: Final = 300.0
_MAXIMUM_PASSES: Final = 20
_BETWEEN_PASSES_SECONDS: Final = 0.1
_FINAL_COUNT_SECONDS: Final = 10.0


class _PrimaryDeniedError(Exception):
    """The key of the primary is denied, so no row can be rewrapped; `error` says why."""

    def __init__(self, error: KeyDenied) -> None:
        super().__init__()
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """The rows that a sweep takes, and how fast.

    - `provider`: only this provider's rows
    - `shard`: only the rows of this shard
    - `limit`: stop after so many rows; unreadable ones do not count
    - `rows_per_second`: bounds the load on KMS, which gets one or two requests for each row
    - `dry_run`: decrypt every due row and write none
    - `rewrap_legacy`: also rows in PulsePlan's formats; without it they are neither counted nor read
    - `scattered`: begin at a random row, because sweeps that begin at the same row do the same work twice
    - `retry_seconds`: how long one call to KMS or the store is retried while it is unavailable
    """

    provider: str | None = None
    shard: Shard | None = None
    limit: int | None = None
    rows_per_second: float | None = None
    dry_run: bool = False
    rewrap_legacy: bool = False
    scattered: bool = False
    deadline_seconds: float | None = None
    retry_seconds: float = RETRY_SECONDS

    def key_ranges(self) -> list[KeyRange]:
        """Return the row ids to walk, in order."""
        if self.shard is not None:
            return [self.shard.key_range]
        return scattered_ranges() if self.scattered else [KeyRange()]


class Sweep:
    """One sweep; call `run` once. `audited` holds the unreadable rows for which earlier sweeps left an event."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        observer: SweepObserver,
        plan: SweepPlan,
        audited: ReportedRows | None = None,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._observer = observer
        self._plan = plan
        self._report = SweepReport()
        self._outcomes = OutcomeRecorder(
            report=self._report,
            observer=observer,
            events=events,
            audited=ReportedRows() if audited is None else audited,
            keeps_events=not plan.dry_run,
        )
        self._retry = Retry(seconds=plan.retry_seconds, per_second=plan.rows_per_second, on_wait=observer.waiting)
        self._writer = RewrapWriter(tokens=tokens, retry=self._retry, outcomes=self._outcomes)
        self._row_slots = asyncio.Semaphore(CONCURRENT_ROWS)
        # at a low rate a page is about one second's rows: a stop wastes little
        self._page_rows = max(1, int(min(PAGE_ROWS, plan.rows_per_second or PAGE_ROWS)))
        self._primary_proven = self._counted = False

    def stop(self, reason: str = "it was stopped") -> None:
        """Finish the writes that were sent, take no further row, and end."""
        self._retry.stop(reason)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._retry.stopped

    async def run(self) -> SweepReport:
        """Rewrap every due row, and report.

        Raises a `VaultError` that no retry can resolve: the primary's key is denied, the store refuses every write, or
        the audit trail failed.
        """
        began = time.monotonic()
        deadline = None
        if self._plan.deadline_seconds is not None:
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(self._plan.deadline_seconds, self.stop, "its time was over")
        try:
            await self._run_passes()
        except StoppedError as stopped:
            self._report.stopped = stopped.reason
            await self._count_after_stop()
        except VaultError:
            if self._counted:
                await self._count_after_stop()
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

    async def _run_passes(self) -> None:
        """Walk the due rows, and again while others keep adding some."""
        report = self._report
        await self._retry.call(self._cipher.prove_primary)  # the scheme of an alias is not known before
        self._primary_proven = True
        census = await self._retry.call(self._count)
        if census is not None:
            report.due, report.legacy = census.due, census.legacy
        self._counted = True
        self._observer.progressed(report)
        for _ in range(_MAXIMUM_PASSES):
            self._outcomes.begin_pass()
            before = report.rewrapped + report.overtaken
            for scheme in await self._due_schemes(census):
                await self._walk(scheme)
            self._outcomes.end_pass()
            census = await self._retry.call(self._count)
            report.remaining = None if census is None else census.due
            nothing_found = report.rewrapped + report.overtaken == before
            if self._plan.dry_run or self._is_complete(census, nothing_found=nothing_found):
                return
            await self._retry.pause(_BETWEEN_PASSES_SECONDS)
        raise StoppedError("others keep writing rows under another key")

    def _is_complete(self, census: Census | None, *, nothing_found: bool) -> bool:
        if census is not None and (census.due or 0) <= self._report.unreadable.total():
            return True
        # without a count, or with one that includes other shards, a pass that finds nothing is the proof
        return nothing_found and (census is None or self._plan.shard is not None)

    async def _count(self) -> Census | None:
        """Return the census, or `None` if the store times out; not repeated, because each count reads every row."""
        try:
            return await self._retry.while_running(self._census())
        except StoreTimeout:
            return None

    async def _count_after_stop(self) -> None:
        """Count the remaining rows within a few seconds, if the primary's scheme is known."""
        if self._primary_proven:
            self._report.remaining = None
            with contextlib.suppress(VaultError, TimeoutError):
                async with asyncio.timeout(_FINAL_COUNT_SECONDS):
                    self._report.remaining = (await self._census()).due

    async def _census(self) -> Census:
        lines = await self._tokens.census(provider=self._plan.provider)
        census = Census.of(lines, primary_scheme=self._cipher.primary_scheme)
        return census if self._plan.rewrap_legacy else census.without_legacy()

    async def _due_schemes(self, census: Census | None) -> list[str | None]:
        """Return the schemes to walk. Rows with one that the vault does not write are counted and not read."""
        if census is not None:
            self._outcomes.strange(census.strange)
            schemes = census.due_schemes
        else:
            found = await self._retry.call(self._tokens.schemes)
            schemes = [scheme for scheme in found if scheme != self._cipher.primary_scheme]
        return [scheme for scheme in schemes if scheme is None or is_written(scheme)]

    async def _walk(self, scheme: str | None) -> None:
        """Rewrap the rows of one scheme, several pages at a time.

        An error ends the walk once the pages that were begun have ended: a write that was sent is never abandoned.
        """
        reading, failed = asyncio.Lock(), False

        async def work() -> None:
            nonlocal failed
            try:
                while not failed:
                    async with reading:
                        page = await anext(pages, None)
                    if page is None:
                        return
                    await self._rewrap_page(page)
            except BaseException:
                failed = True
                raise

        # with a limit, the size of the next page depends on the outcome of the last one
        workers = CONCURRENT_PAGES if self._plan.limit is None else 1
        async with contextlib.aclosing(self._pages(scheme)) as pages:
            await all_of(work() for _ in range(workers))

    async def _pages(self, scheme: str | None) -> AsyncGenerator[Page, None]:
        for key_range in self._plan.key_ranges():
            after = key_range.after
            while page := await self._retry.call(self._read_page, scheme, after, key_range.last):
                after = page[-1].id
                yield page

    async def _read_page(self, scheme: str | None, after: str | None, last: str | None) -> Page:
        rows = self._page_rows
        if self._plan.limit is not None:
            rows = min(rows, self._plan.limit - self._report.rewrapped - self._report.overtaken)
        if rows <= 0:
            raise StoppedError(f"the limit of {self._plan.limit} rows is reached")
        page = await self._tokens.page(scheme, after=after, limit=rows, provider=self._plan.provider)
        return [row for row in page if last is None or row.id <= last]

    async def _rewrap_page(self, page: Page) -> None:
        try:
            await self._retry.call(self._require_audit)
            page = await self._without_copies([row for row in page if self._takes(row)])
            rewraps = [rewrap for rewrap in await all_of(map(self._prepare, page)) if rewrap is not None]
            refused = await self._writer.write(rewraps)
            if refused and len(refused) == len(rewraps):  # perhaps the store refuses every row
                await self._retry.call(self._prove_store)
            for rewrap, error in refused:
                self._outcomes.unreadable(rewrap.before.id, error, rewrap.before)
        finally:
            await self._outcomes.write_events()
        self._observer.progressed(self._report)

    def _takes(self, row: StoredToken | UnreadableRow) -> bool:
        """Return whether the plan includes the row.

        A row that names a scheme is taken: a legacy ciphertext in it is `integrity`, and the sweep reports it.
        """
        if self._plan.rewrap_legacy or isinstance(row, UnreadableRow):
            return True
        return row.encryption_scheme is not None or not is_legacy(row)

    async def _without_copies(self, page: Page) -> Page:
        """Report the legacy rows whose ciphertext stands in another place too, and return the others."""
        tokens = [row for row in page if isinstance(row, StoredToken)]
        copies = await find_copies(tokens, partial(self._retry.call, self._tokens.list_for_user))
        for row, error in copies.values():
            self._outcomes.unreadable(row.id, error, row)
        return [row for row in page if row.id not in copies]

    async def _prove_store(self) -> None:
        """Check that the store accepts an empty rewrap; raises its `StoreError` otherwise."""
        await self._tokens.check()
        await self._tokens.replace_ciphertexts([])

    async def _require_audit(self) -> None:
        self._events.require_open()

    async def _prepare(self, row: StoredToken | UnreadableRow) -> Rewrap | None:
        """Return the rewrap to write, `None` if there is none."""
        if isinstance(row, UnreadableRow):
            self._outcomes.unreadable(row.id, StoreMisconfigured(row.detail), None)
            return None
        async with self._row_slots:
            await self._retry.keep_rate()
            try:
                sealed = await self._retry.call(self._rewrap, row)
            except _PrimaryDeniedError as denied:
                raise denied.error from None
            except (EncryptionError, InvalidRequest) as error:
                self._outcomes.unreadable(row.id, error, row)
                return None
        if sealed is None:
            self._outcomes.readable()
            return None
        if sealed.access.scheme == row.encryption_scheme:
            return None
        return Rewrap(row, transitions.rewrapped(row, sealed))

    async def _rewrap(self, row: StoredToken) -> SealedSecrets | None:
        """Return the row's secrets under the primary; in a dry run only decrypt them and return `None`.

        Raises the row's own `EncryptionError` or `InvalidRequest`; `_PrimaryDeniedError`, which concerns every row; or
        `KeyUnavailable`, also for expired credentials, because new ones may arrive.
        """
        try:
            secrets = await self._cipher.open(row)
            if self._plan.dry_run:
                return None
            try:
                return await self._cipher.seal_as_primary(Binding.of(row), secrets)
            except CredentialsDenied:
                raise
            except KeyDenied as error:
                raise _PrimaryDeniedError(error) from None
        except CredentialsDenied as error:
            raise KeyUnavailable(error.detail) from None
