"""The sweep: moves every token to the primary key while others read and write.

It can run at any time, be killed at any moment, be started again, and run several times at once, because each row moves
in one conditional write that holds only for the row that was decrypted. It keeps no state of its own: the column
`encryption_scheme` says what is left to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeVar

from app.errors import EncryptionError, StoreError, VaultError
from app.tokens import transitions
from app.tokens.census import Census
from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import Caller, Rewrap, UnreadableRow

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence

    from app.tokens.events import TokenEvents
    from app.tokens.models import StoredToken
    from app.tokens.repository import TokenRepository
    from app.tokens.token_cipher import TokenCipher

T = TypeVar("T")
PAGE_ROWS: Final = 200
CONCURRENT_PAGES: Final = 3
CONCURRENT_ROWS: Final = 32
PATIENCE_SECONDS: Final = 300.0
_MAXIMUM_PASSES: Final = 20
_BETWEEN_PASSES_SECONDS: Final = 0.1
_SHORTEST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 10.0
_TOLD_ONCE: Final = 10_000
CALLER: Final = Caller("token-vault-rewrap")


async def rewrapped(cipher: TokenCipher, token: StoredToken) -> Rewrap | None:
    """Open a token and seal it under the primary; `None` where it is there already. Raises an `EncryptionError`."""
    sealed = await cipher.reseal(token.token_id, await cipher.open(token))
    if sealed.access.scheme == token.encryption_scheme:
        return None
    return Rewrap(token, transitions.rewrapped(token, sealed))


@dataclass(slots=True)
class SweepReport:
    """What a sweep has done so far.

    `due` were not under the primary at the beginning, `None` until that is counted. `moved` rows are now, or would be
    for all a dry run knows; `overtaken` ones somebody changed or deleted meanwhile; `unreadable` ones stay as they are,
    by error code; `in_doubt` ones were written at the very end without an answer. `remaining` is counted in the store
    afterwards, `None` where that failed. `stopped` says why the sweep ended before it was through, `None` where it was
    through.
    """

    due: int | None = None
    moved: int = 0
    overtaken: int = 0
    unreadable: Counter[str] = field(default_factory=Counter)
    in_doubt: int = 0
    remaining: int | None = None
    stopped: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPlan:
    """How a sweep goes about it.

    `rows_per_second` limits the load on KMS, which is asked about once or twice for a row. `limit` ends the sweep after
    so many rows. `dry_run` opens every row and writes none. While KMS or the store is unavailable the sweep waits, at
    most `patience_seconds` for one thing.
    """

    provider: str | None = None
    limit: int | None = None
    rows_per_second: float | None = None
    dry_run: bool = False
    deadline_seconds: float | None = None
    patience_seconds: float = PATIENCE_SECONDS


class SweepObserver(Protocol):
    """Hears of a sweep while it runs. Nothing it is given holds a secret."""

    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...


class _StoppedError(Exception):
    """The sweep was told to stop, or gave up waiting; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Sweep:
    """One sweep; `run` it once."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        observer: SweepObserver,
        plan: SweepPlan,
    ) -> None:
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._observer = observer
        self._plan = plan
        self._report = SweepReport()
        self._stop = asyncio.Event()
        self._stop_reason = ""
        self._pages = asyncio.Semaphore(CONCURRENT_PAGES)
        self._rows = asyncio.Semaphore(CONCURRENT_ROWS)
        self._next_row_at = 0.0
        # at a low rate a page is about a second's rows: what is read is soon written, and little is lost by stopping
        self._page_rows = max(1, int(min(PAGE_ROWS, plan.rows_per_second or PAGE_ROWS)))
        self._taken = 0
        self._told: set[str] = set()
        self._unrecorded: list[TokenEvent] = []

    def stop(self, reason: str = "it was told to stop") -> None:
        """Let what is being written finish, take no further row, and end."""
        self._stop_reason = self._stop_reason or reason
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether it was told to stop."""
        return self._stop.is_set()

    async def run(self) -> SweepReport:
        """Move every row that is due, and report; call it once.

        Raises a `VaultError` where no waiting helps: the primary cannot seal, the store refuses everything, or what was
        done could not be recorded.
        """
        began = time.monotonic()
        deadline = None
        if self._plan.deadline_seconds is not None:
            loop = asyncio.get_running_loop()
            deadline = loop.call_later(self._plan.deadline_seconds, self.stop, "its time was over")
        try:
            await self._run()
        except _StoppedError as stopped:
            self._report.stopped = stopped.reason
        finally:
            if deadline is not None:
                deadline.cancel()
        if self._report.due is not None:  # without the primary's proof its scheme may not be known
            with contextlib.suppress(VaultError):  # then nobody knows how many are left, and the report says so
                self._report.remaining = (await self._census()).due
        self._report.seconds = time.monotonic() - began
        self._observer.progressed(self._report)
        return self._report

    async def _run(self) -> None:
        report = self._report
        await self._patiently(self._cipher.prove_primary)  # until then its scheme may not be known
        census = await self._patiently(self._census)
        report.due = census.due
        self._observer.progressed(report)
        for _ in range(_MAXIMUM_PASSES):
            report.unreadable.clear()
            for scheme in census.due_schemes:
                await self._walk(scheme)
            census = await self._patiently(self._census)
            if self._plan.dry_run or census.due <= report.unreadable.total():
                return
            await self._pause(_BETWEEN_PASSES_SECONDS)  # rows that others wrote meanwhile, under another key or none
        reason = "others keep writing rows under another key"
        raise _StoppedError(reason)

    async def _census(self) -> Census:
        lines = await self._tokens.census(provider=self._plan.provider)
        return Census.of(lines, primary_scheme=self._cipher.primary_scheme)

    async def _walk(self, scheme: str | None) -> None:
        """Take the rows of one scheme page by page, several pages at a time."""
        after: str | None = None
        async with _Tasks() as tasks:
            while True:
                page = await self._patiently(self._next_page, scheme, after)
                if not page:
                    return
                after = page[-1].id
                await self._pages.acquire()
                tasks.start(self._move(page))
                tasks.raise_first()

    async def _next_page(self, scheme: str | None, after: str | None) -> list[StoredToken | UnreadableRow]:
        left = self._page_rows if self._plan.limit is None else min(self._page_rows, self._plan.limit - self._taken)
        if left <= 0:
            reason = f"the limit of {self._plan.limit} rows is reached"
            raise _StoppedError(reason)
        page = await self._tokens.page(scheme, after=after, limit=left, provider=self._plan.provider)
        self._taken += len(page)
        return page

    async def _move(self, page: Sequence[StoredToken | UnreadableRow]) -> None:
        try:
            await self._patiently(self._demand_record)
            rewraps = [rewrap for rewrap in await _all_of(map(self._prepared, page)) if rewrap is not None]
            refused = await self._write(rewraps)
            if len(refused) == len(rewraps) > 1:  # it is not about single rows
                raise refused[0][1]
            for rewrap, error in refused:
                self._unreadable(rewrap.before.id, error, rewrap.before)
        finally:
            self._pages.release()
            await self._record_what_was_done()
        self._observer.progressed(self._report)

    async def _demand_record(self) -> None:
        self._events.demand_open()

    async def _record_what_was_done(self) -> None:
        events, self._unrecorded = self._unrecorded, []
        await _all_of(map(self._events.record, events))

    async def _prepared(self, row: StoredToken | UnreadableRow) -> Rewrap | None:
        """Return the row under the new key, or `None` where there is nothing to write."""
        if isinstance(row, UnreadableRow):
            self._unreadable(row.id, StoreError(row.detail), None)
            return None
        async with self._rows:
            await self._pace()
            try:
                secrets = await self._patiently(self._cipher.open, row)
            except EncryptionError as error:
                self._unreadable(row.id, error, row)
                return None
            if self._plan.dry_run:
                self._report.moved += 1
                return None
            sealed = await self._patiently(self._cipher.reseal, row.token_id, secrets)
        if sealed.access.scheme == row.encryption_scheme:
            return None
        return Rewrap(row, transitions.rewrapped(row, sealed))

    async def _write(self, rewraps: Sequence[Rewrap]) -> list[tuple[Rewrap, StoreError]]:
        """Write a page at once. Where the store refuses it, halve it, and return the rows that are refused alone."""
        if not rewraps:
            return []
        try:
            await self._write_together(rewraps)
        except StoreError as error:
            if len(rewraps) == 1:
                return [(rewraps[0], error)]
            middle = len(rewraps) // 2
            return await self._write(rewraps[:middle]) + await self._write(rewraps[middle:])
        return []

    async def _write_together(self, rewraps: Sequence[Rewrap]) -> None:
        """Write until each row is known to be moved or overtaken; raises a `StoreError` that no waiting mends.

        After an answer that was lost the rows tell what became of the write: a ciphertext is never made twice. What is
        sent again is the same, so a first write that arrives late changes nothing.
        """
        pending = {rewrap.before.id: rewrap for rewrap in rewraps}
        sent = False

        async def attempt() -> None:
            nonlocal sent
            if sent:
                self._settle(pending, await self._tokens.get_rows(list(pending)), last=False)
            if pending:
                sent = True
                for row_id in await self._tokens.replace_ciphertexts(list(pending.values())):
                    self._moved(pending.pop(row_id))

        try:
            await self._patiently(attempt)
            if pending:
                self._settle(pending, await self._patiently(self._tokens.get_rows, list(pending)), last=True)
        except _StoppedError:
            self._report.in_doubt += len(pending) if sent else 0
            raise

    def _settle(self, pending: dict[str, Rewrap], rows: Mapping[str, StoredToken], *, last: bool) -> None:
        """Take the rows out of `pending` whose outcome `rows` shows; on the `last` look, all of them."""
        for row_id, rewrap in list(pending.items()):
            row = rows.get(row_id)
            if row is not None and row.access_ciphertext == rewrap.after.access_ciphertext:
                self._moved(pending.pop(row_id))
            elif last or row is None or not _is_still(row, rewrap.before):
                del pending[row_id]
                self._report.overtaken += 1

    def _moved(self, rewrap: Rewrap) -> None:
        self._report.moved += 1
        self._record(rewrap.after, SUCCESS, None)

    def _unreadable(self, row_id: str, error: VaultError, row: StoredToken | None) -> None:
        self._report.unreadable[error.code] += 1
        if row_id in self._told:  # a later pass comes by again
            return
        if len(self._told) < _TOLD_ONCE:
            self._told.add(row_id)
        self._observer.unreadable(row_id, error)
        if row is not None:
            self._record(row, error.code, error.detail)

    def _record(self, row: StoredToken, outcome: str, detail: str | None) -> None:
        if not self._plan.dry_run:
            self._unrecorded.append(
                TokenEvent(
                    operation=Operation.REWRAP,
                    user_id=row.token_id.user_id,
                    token_id=row.token_id,
                    scheme=row.encryption_scheme,
                    encryption_method=row.encryption_method,
                    outcome=outcome,
                    detail=detail,
                    caller=CALLER,
                )
            )

    async def _pace(self) -> None:
        self._demand_running()
        if self._plan.rows_per_second is not None:
            now = time.monotonic()
            at = max(self._next_row_at, now)
            self._next_row_at = at + 1 / self._plan.rows_per_second
            if at > now:
                await self._pause(at - now)

    async def _patiently(self, call: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Call, and call again while the error is retryable, with growing pauses; other errors are the caller's."""
        began, pause = time.monotonic(), _SHORTEST_PAUSE_SECONDS
        while True:
            self._demand_running()
            try:
                return await call(*arguments)
            except VaultError as error:
                if not error.retryable:
                    raise
                if time.monotonic() - began > self._plan.patience_seconds:
                    raise _StoppedError(error.detail) from None
                self._observer.waiting(error, pause)
            await self._pause(pause * random.uniform(0.5, 1))  # noqa: S311  spreads those who wait together
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Sleep, or raise as soon as the sweep has to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        self._demand_running()

    def _demand_running(self) -> None:
        if self._stop.is_set():
            raise _StoppedError(self._stop_reason)


class _Tasks:
    """Tasks side by side. When the block ends all have ended too, and the first error of any of them is raised."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, asyncio.CancelledError):
            for task in self._running:
                task.cancel()
        while self._running:
            await asyncio.wait(self._running)
        if error is None:
            self.raise_first()

    def start(self, call: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(call)
        self._running.add(task)
        task.add_done_callback(self._ended)

    def raise_first(self) -> None:
        if self._error is not None:
            raise self._error

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            error = task.exception()  # asked of each, else asyncio logs it
            self._error = self._error or error


async def _all_of(calls: Iterable[Awaitable[T]]) -> list[T]:
    """Wait for all, then return their results or raise the first error: nothing goes on behind the caller's back."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]


def _is_still(row: StoredToken, before: StoredToken) -> bool:
    return (row.version, row.encryption_scheme, row.access_ciphertext, row.refresh_ciphertext) == (
        before.version,
        before.encryption_scheme,
        before.access_ciphertext,
        before.refresh_ciphertext,
    )
