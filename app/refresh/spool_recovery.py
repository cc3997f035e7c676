"""Recovery of the spool: refreshes of processes that have ended are finished by the next one, or by one beside it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import UTC, datetime
from typing import Final

import structlog

from app.concurrency import all_of
from app.errors import IntegrityError, MalformedCiphertext, VaultError
from app.refresh.observer import RefreshObserver, Unobserved
from app.refresh.providers import Rotation
from app.refresh.registry import ProviderRegistry
from app.refresh.spool import RefreshSpool, SpoolError
from app.refresh.spooled_refresh import SpooledRefresh
from app.refresh.successor import keep_successor
from app.tokens.cipher import TokenCipher
from app.tokens.events import SUCCESS, SUPERSEDED, Operation, TokenEvent, TokenEvents
from app.tokens.models import Caller, StoredToken, UnreadableRow
from app.tokens.repository import TokenRepository

SPOOL_SERVICE: Final = "refresh-spool"
_INTERVAL_SECONDS: Final = 5.0  # far less than a lease
_CONCURRENT: Final = 8
_REFUSED: Final = "refresh_spool_refused"
_log = structlog.get_logger()


class SpoolRecovery:
    """Writes the tokens of the spool that no living process writes, and deletes their files.

    A write has the condition of the refresh itself, so a row that another writer has changed since stays as it is, but
    a spent refresh token gives way to its successor. A refresh of a single-use token that has taken over, and waits,
    loses its lease. A file that is damaged, or whose secrets do not open for its row,
    is reported once, counted as `refused`, and stays.
    """

    def __init__(
        self,
        *,
        spool: RefreshSpool,
        tokens: TokenRepository,
        cipher: TokenCipher,
        events: TokenEvents,
        providers: ProviderRegistry,
        observer: RefreshObserver | None = None,
    ) -> None:
        self.kept = spool.kept
        self._spool = spool
        self._tokens = tokens
        self._cipher = cipher
        self._events = events
        self._providers = providers
        self._observer = observer or Unobserved()
        self._reported: dict[str, tuple[str, str]] = {}
        self._finished = set[str]()  # whose files could not be deleted yet
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin at once, and look again every few seconds."""
        self._running = asyncio.create_task(self._run())

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def run_once(self) -> None:
        """Finish every refresh whose process has ended, as far as the store and the keys permit now."""
        free = asyncio.Semaphore(_CONCURRENT)

        async def finish(holder: str) -> str | None:
            async with free:
                try:
                    return await self._finish(holder, only_abandoned=True)
                except VaultError as error:
                    event = "refresh_unwritten" if error.retryable else _REFUSED
                    return self._report(event, holder, error.detail)

        try:
            contents = await asyncio.to_thread(self._spool.contents)
            await asyncio.to_thread(self._spool.delete_old, contents.drafts)
        except OSError as error:
            self._report("refresh_spool_failed", "", error.strerror or type(error).__qualname__)
            return
        if contents.foreign:
            self._report(_REFUSED, "", f"{len(contents.foreign)} files are not the vault's")
        left = [event for event in await all_of(map(finish, contents.holders)) if event is not None]
        refused = left.count(_REFUSED)
        self._observer.spooled(waiting=len(left) - refused, refused=refused + len(contents.foreign))

    async def finish(self, holder: str) -> None:
        """Finish this holder's refresh, if it is in the spool, before another one spends its refresh token again.

        Also if its process lives: it may be stopped. Raises the `VaultError` if the store or a key is unavailable.
        """
        await self._finish(holder, only_abandoned=False)

    async def _run(self) -> None:
        while True:
            try:
                await self.run_once()
            except Exception as error:  # noqa: BLE001  the next round must still run
                _log.error("refresh_spool_failed", exc_info=error)
            await asyncio.sleep(_INTERVAL_SECONDS)

    async def _finish(self, holder: str, *, only_abandoned: bool) -> str | None:
        """Finish a refresh; return the event that was logged if its file cannot be finished."""
        try:
            async with self._spool.opened(holder) as file:
                if file is None or (only_abandoned and not file.is_abandoned):
                    return None
                if holder not in self._finished:
                    await self._write(file.result())
                    self._finished.add(holder)
                if file.is_abandoned:
                    await asyncio.to_thread(file.path.unlink, missing_ok=True)
                    self._finished.discard(holder)
        except SpoolError as error:
            return self._report(_REFUSED, holder, str(error))
        except (IntegrityError, MalformedCiphertext) as error:
            return self._report(_REFUSED, holder, error.detail)
        except OSError as error:
            return self._report("refresh_spool_failed", holder, error.strerror or type(error).__qualname__)
        return None

    async def _write(self, result: SpooledRefresh) -> None:
        """Write the tokens to their row if it is still under the lease of their refresh, and record the outcome."""
        while True:
            row = (await self._tokens.read_back([result.row_id])).get(result.row_id)
            if isinstance(row, UnreadableRow):
                raise row.error()
            if row is None:
                _log.warning("refresh_spool_superseded", reason="the token was deleted")
                return
            if not (result.is_condition_of(row) or self._is_awaited(result, row)):
                break
            after = result.applied_to(row)
            await self._cipher.open(after)
            if await self._tokens.settle_refresh(row, after):
                row = after
                break
        written = row.access_ciphertext == result.access_ciphertext
        if not written:
            with suppress(IntegrityError, MalformedCiphertext):  # its base URL may be another one
                spent, after = result.spent_of(row), result.applied_to(row)
                await keep_successor(self._tokens, self._cipher, spent, after, now=datetime.now(UTC))
        await self._events.record(_event(row, SUCCESS if written else SUPERSEDED, intent=result.intent))
        event = "refresh_finished_from_spool" if written else "refresh_spool_superseded"
        _log.info(event, provider=row.token_id.provider)

    def _is_awaited(self, result: SpooledRefresh, row: StoredToken) -> bool:
        """Whether a refresh of a single-use token has taken the lease over: it waits for this very result."""
        provider = self._providers.find(row.token_id.provider)
        single_use = provider is not None and provider.rotation is Rotation.SINGLE_USE
        return single_use and row.refresh_state.is_refreshing and row.refresh_ciphertext == result.spent_ciphertext

    def _report(self, event: str, holder: str, reason: str) -> str:
        """Log a problem with a file, or with all of them, once while it stays the same; return the event."""
        if self._reported.get(holder) != (event, reason):
            self._reported[holder] = event, reason
            _log.error(event, reason=f"{holder}: {reason}" if holder else reason)
        return event


def _event(row: StoredToken, outcome: str, *, intent: str | None) -> TokenEvent:
    return TokenEvent(
        operation=Operation.REFRESH,
        user_id=row.token_id.user_id,
        token_id=row.token_id,
        scheme=row.encryption_scheme,
        encryption_method=row.encryption_method,
        outcome=outcome,
        detail=None,
        caller=Caller(SPOOL_SERVICE),
        intent=intent,
    )
