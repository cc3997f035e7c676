"""Writes rewraps until it is known what became of each, however often the store's answer is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.errors import StoreError
from app.tokens.patience import StoppedError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.tokens.models import Rewrap, StoredToken
    from app.tokens.patience import Patience
    from app.tokens.repository import TokenRepository
    from app.tokens.sweep_report import SweepReport


class RewrapWriter:
    """Counts in `report` what was overtaken or stays in doubt, and hands each row that is known to be moved on."""

    def __init__(
        self,
        *,
        tokens: TokenRepository,
        patience: Patience,
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
                    self._on_moved(pending.pop(row_id))

        try:
            await self._patience.call(attempt)
            if pending:
                self._settle(pending, await self._patience.call(self._tokens.get_rows, list(pending)), last=True)
        except StoppedError:
            self._report.in_doubt += len(pending) if sent else 0
            raise

    def _settle(self, pending: dict[str, Rewrap], rows: Mapping[str, StoredToken], *, last: bool) -> None:
        """Take the rows out of `pending` whose outcome `rows` shows; on the `last` look, all of them."""
        for row_id, rewrap in list(pending.items()):
            row = rows.get(row_id)
            if row is not None and row.access_ciphertext == rewrap.after.access_ciphertext:
                self._on_moved(pending.pop(row_id))
            elif last or row is None or not _is_still(row, rewrap.before):
                del pending[row_id]
                self._report.overtaken += 1


def _is_still(row: StoredToken, before: StoredToken) -> bool:
    return (row.version, row.encryption_scheme, row.access_ciphertext, row.refresh_ciphertext) == (
        before.version,
        before.encryption_scheme,
        before.access_ciphertext,
        before.refresh_ciphertext,
    )
