"""Writes rewraps until it is known what became of each, however often the store's answer is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from app.errors import StoreError
from app.rewrap.report import SweepReport
from app.rewrap.retry import Retry, StoppedError
from app.tokens.models import Rewrap, StoredToken
from app.tokens.repository import TokenRepository
from app.tokens.row_rewrap import WriteOutcome, write_outcome_of

_WHILE_PASSED_OVER_SECONDS: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
_LOOK_ROWS: Final = 25


@dataclass(slots=True)
class _Batch:
    """The rows whose outcome is not known yet, by id, and whether an answer about them was `lost`."""

    pending: dict[str, Rewrap]
    lost: bool = False


class RewrapWriter:
    """Counts in `report` what was overtaken or stays in doubt, and hands each row that is known to be moved on."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        patience: Retry,
        report: SweepReport,
        on_moved: Callable[[Rewrap], None],
    ) -> None:
        self._tokens = tokens
        self._patience = patience
        self._report = report
        self._on_moved = on_moved

    async def write(self, rewraps: Sequence[Rewrap]) -> list[tuple[Rewrap, StoreError]]:
        """Write a page at once. Where the store refuses it, halve it, and return the rows that are refused alone.

        Raises `StoppedError`.
        """
        if not rewraps:
            return []
        try:
            await self._write_together(rewraps)
        except StoreError as error:
            if len(rewraps) == 1:
                return [(rewraps[0], error)]
            middle = len(rewraps) // 2
            return await self.write(rewraps[:middle]) + await self.write(rewraps[middle:])
        return []

    async def _write_together(self, rewraps: Sequence[Rewrap]) -> None:
        """Write until each row is known to be moved or overtaken; raises a `StoreError` that no waiting mends.

        After an answer that was lost the same is sent again, which is safe: a ciphertext is never made twice, and what
        has been written already no longer holds what was decrypted. The rows tell what became of those that the store
        does not name. One that somebody is writing at this moment is passed over; it may be our own first write that
        holds it, so it is tried a few times more.
        """
        batch = _Batch({rewrap.before.id: rewrap for rewrap in rewraps})
        try:
            for pause_seconds in _WHILE_PASSED_OVER_SECONDS:
                await self._patience.call(self._send, batch)
                await self._patience.call(self._look, batch)
                if not batch.pending:
                    return
                await self._patience.pause(pause_seconds)
        except StoppedError:
            self._report.in_doubt += len(batch.pending) if batch.lost else 0
            raise
        self._report.overtaken += len(batch.pending)  # by somebody who is still writing

    async def _send(self, batch: _Batch) -> None:
        try:
            written = await self._tokens.replace_ciphertexts(list(batch.pending.values()))
        except StoreError:
            batch.lost = True
            raise
        for row_id in written:
            self._on_moved(batch.pending.pop(row_id))

    async def _look(self, batch: _Batch) -> None:
        """Read what is pending, and take out of it what the rows decide; what one piece has decided stays so."""
        row_ids = list(batch.pending)
        for piece in (row_ids[at : at + _LOOK_ROWS] for at in range(0, len(row_ids), _LOOK_ROWS)):
            rows = await self._tokens.get_rows(piece)
            for row_id in piece:
                self._settle(batch, row_id, rows.get(row_id))

    def _settle(self, batch: _Batch, row_id: str, row: StoredToken | None) -> None:
        rewrap = batch.pending[row_id]
        fate = write_outcome_of(rewrap, row)
        if fate is WriteOutcome.WRITTEN:
            self._on_moved(batch.pending.pop(row_id))
        elif fate is WriteOutcome.OVERTAKEN:
            del batch.pending[row_id]
            self._report.overtaken += 1
