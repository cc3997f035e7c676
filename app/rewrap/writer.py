"""Write rewraps until the outcome of each row is known, even if the store's answers are lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from app.errors import StoreError
from app.rewrap.outcomes import OutcomeRecorder
from app.rewrap.retry import Retry, StoppedError
from app.tokens.models import Rewrap, TokenRow
from app.tokens.repository import TokenRepository
from app.tokens.row_rewrap import WriteOutcome, write_outcome_of

_PAUSES_WHILE_LOCKED_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
_READ_BACK_ROWS: Final = 25


@dataclass(slots=True)
class _Batch:
    """The rows whose outcome is not known yet, by id; `answer_lost` if a write of them may have been applied."""

    pending: dict[str, Rewrap]
    answer_lost: bool = False


class RewrapWriter:
    """Writes a page of rewraps, and gives the outcome of each row to `outcomes`."""

    def __init__(self, *, tokens: TokenRepository, retry: Retry, outcomes: OutcomeRecorder) -> None:
        self._tokens = tokens
        self._retry = retry
        self._outcomes = outcomes

    async def write(self, rewraps: Sequence[Rewrap]) -> list[tuple[Rewrap, StoreError]]:
        """Write a page at once. If the store refuses it, halve it, and return the rows that are refused alone.

        Raises `StoppedError`.
        """
        if not rewraps:
            return []
        try:
            await self._write_batch(rewraps)
        except StoreError as error:
            if len(rewraps) == 1:
                return [(rewraps[0], error)]
            middle = len(rewraps) // 2
            return await self.write(rewraps[:middle]) + await self.write(rewraps[middle:])
        return []

    async def _write_batch(self, rewraps: Sequence[Rewrap]) -> None:
        """Write until each row is known to be rewrapped or overtaken; raises the `StoreError` of a refusal.

        After a lost answer the same batch is sent again. That is safe: a ciphertext is never made twice, and a row
        that was written no longer holds what was decrypted. Rows that the store does not name are read back. The store
        skips a row that another transaction has locked; our own first write may hold it, so it is tried again.
        """
        batch = _Batch({rewrap.before.id: rewrap for rewrap in rewraps})
        try:
            for pause_seconds in _PAUSES_WHILE_LOCKED_SECONDS:
                await self._retry.call(self._send, batch)
                await self._retry.call(self._read_back, batch)
                if not batch.pending:
                    return
                await self._retry.pause(pause_seconds)
        except StoppedError:
            self._outcomes.in_doubt(len(batch.pending) if batch.answer_lost else 0)
            raise
        self._outcomes.overtaken(len(batch.pending))  # by a writer that still holds the lock

    async def _send(self, batch: _Batch) -> None:
        try:
            written = await self._tokens.replace_ciphertexts(list(batch.pending.values()))
        except StoreError:
            batch.answer_lost = True
            raise
        for row_id in written:
            self._outcomes.rewrapped(batch.pending.pop(row_id))

    async def _read_back(self, batch: _Batch) -> None:
        """Read the pending rows and settle them; a retry goes on with the rows that are still pending."""
        row_ids = list(batch.pending)
        for chunk in (row_ids[at : at + _READ_BACK_ROWS] for at in range(0, len(row_ids), _READ_BACK_ROWS)):
            rows = await self._tokens.read_back(chunk)
            for row_id in chunk:
                self._settle(batch, row_id, rows.get(row_id))

    def _settle(self, batch: _Batch, row_id: str, row: TokenRow | None) -> None:
        rewrap = batch.pending[row_id]
        outcome = write_outcome_of(rewrap, row)
        if outcome is WriteOutcome.UNCHANGED:
            return
        del batch.pending[row_id]
        if outcome is WriteOutcome.WRITTEN:
            self._outcomes.rewrapped(rewrap)
        else:
            self._outcomes.overtaken()
