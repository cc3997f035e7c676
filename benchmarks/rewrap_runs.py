"""What is compared: the sweep, and the loop that anybody would write first. And a sweep's memory."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import uvloop

from app.errors import VaultError
from app.rewrap.report import SweepReport
from app.rewrap.resealer import Resealer
from app.rewrap.resealing_here import ResealerHere
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.context import SecretField, TokenContext
from app.security.service import EncryptionService
from app.stores.sqlite.repository import SqliteRepository
from app.tokens import transitions
from app.tokens.cipher import SealedSecrets, TokenCipher
from app.tokens.events import NoAuditTrail, TokenEvents
from app.tokens.models import Rewrap, StoredToken
from app.tokens.repository import TokenRepository
from benchmarks.bench import Bench
from benchmarks.table import Line, Target
from tests.support.rewrap.stored_rows import SqliteRows, local_encryption
from tests.support.rewrap.sweeps import bound_row

_CHUNK_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Run:
    rows: int
    seconds: float
    kms_requests: int

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


class _Quiet:
    def progressed(self, report: SweepReport) -> None: ...

    def unreadable(self, row_id: str, error: VaultError) -> None: ...

    def waiting(self, error: VaultError, seconds: float) -> None: ...


async def swept(tokens: TokenRepository, resealer: Resealer) -> int:
    """Sweep everything, and return how many rows moved."""
    events = TokenEvents(audit=NoAuditTrail())
    report = await Sweep(tokens=tokens, resealer=resealer, events=events, observer=_Quiet(), plan=SweepPlan()).run()
    assert report.remaining == 0
    return report.moved


async def plain_loop(
    tokens: TokenRepository, service: Callable[[], EncryptionService], rows: Sequence[StoredToken]
) -> int:
    """Read a row, decrypt, encrypt and write it, one after the other; it proves nothing and waits for each step.

    `service` gives one that remembers no data key, so that under KMS each step is a request.
    """
    moved = 0
    for listed in rows:
        [row] = (await tokens.get_rows([listed.id])).values()
        where = {"provider": row.token_id.provider, "service_type": row.token_id.service_type}
        fields = {SecretField.ACCESS_TOKEN: row.access_ciphertext, SecretField.REFRESH_TOKEN: row.refresh_ciphertext}
        texts = {
            field: service().decrypt_token(text, row.token_id.user_id, field=field, **where)
            for field, text in fields.items()
            if text is not None
        }
        sealed = {
            field: service().seal(text, TokenContext(row.token_id.user_id, field=field, **where))
            for field, text in texts.items()
        }
        secrets = SealedSecrets(sealed[SecretField.ACCESS_TOKEN], sealed.get(SecretField.REFRESH_TOKEN))
        moved += len(await tokens.replace_ciphertexts([Rewrap(row, transitions.rewrapped(row, secrets))]))
    return moved


def memory(bench: Bench) -> list[Line]:
    """Sweep a small and a large table in one process, one after the other, and compare the most that each took."""
    few, many = (2_000, 10_000) if bench.quick else (10_000, 100_000)
    peaks = [
        bench.client.submit(_peak_bytes, bench.folder / f"memory-{rows}.db", rows).result() for rows in (few, many)
    ]
    return [
        Line(f"peak memory, a sweep of {few:,} rows, SQLite", peaks[0] / 1e6, "MB"),
        Line(
            f"peak memory, a sweep of {many:,} rows, SQLite",
            peaks[1] / 1e6,
            "MB",
            peaks[1] / peaks[0],
            f"{few:,} rows",
            Target(at_most=1.1, of_ratio=True),
        ),
    ]


def _peak_bytes(path: Path, count: int) -> int:
    """Return the most that this process has had in memory once it has swept so many rows."""
    rows = SqliteRows(path)
    for at in range(0, count, _CHUNK_ROWS):
        rows.insert([bound_row(local_encryption(1), str(uuid4()), 0) for _ in range(min(_CHUNK_ROWS, count - at))])

    async def run() -> None:
        tokens = SqliteRepository(path=path)
        try:
            assert await swept(tokens, ResealerHere(cipher=TokenCipher(encryption=local_encryption(2)))) == count
        finally:
            await tokens.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
