"""The contestants of the rewrap benchmark: a sweep and a plain loop. The peak memory of a sweep."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import uuid4

import uvloop

from app.rewrap.key_ranges import Shard
from app.rewrap.report import SilentObserver
from app.rewrap.sweep import Sweep, SweepPlan
from app.security.context import SecretField, TokenContext
from app.security.encryption_service import EncryptionService
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
from tests.support.stores.stores import rows_by_id

_CHUNK_ROWS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Run:
    rows: int
    seconds: float
    kms_requests: int

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


async def run_sweep(tokens: TokenRepository, cipher: TokenCipher, shard: Shard | None = None) -> int:
    """Rewrap every row of a shard, `None` for the whole table; return how many that was."""
    sweep = Sweep(
        tokens=tokens,
        cipher=cipher,
        events=TokenEvents(audit=NoAuditTrail()),
        observer=SilentObserver(),
        plan=SweepPlan(shard=shard),
    )
    report = await sweep.run()
    assert report.remaining == 0 or shard is not None
    return report.rewrapped


async def plain_loop(
    tokens: TokenRepository, service: Callable[[], EncryptionService], rows: Sequence[StoredToken]
) -> int:
    """Read, decrypt, encrypt and write one row after the other, without a proof; return how many rows that was.

    `service` returns an encryption service without cached data keys, so that under KMS each step is a request.
    """
    rewrapped = 0
    for listed in rows:
        [row] = (await rows_by_id(tokens, [listed.id])).values()
        where = {
            "provider": row.token_id.provider,
            "service_type": row.token_id.service_type,
            "base_url": row.base_url or "",
        }
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
        rewrapped += len(await tokens.replace_ciphertexts([Rewrap(row, transitions.rewrapped(row, secrets))]))
    return rewrapped


def memory(bench: Bench) -> list[Line]:
    """Sweep a small and then a large table in one process, and compare the peaks."""
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
    """Sweep so many rows; return the peak memory of this process."""
    rows = SqliteRows(path)
    for at in range(0, count, _CHUNK_ROWS):
        rows.insert([bound_row(local_encryption(1), str(uuid4()), 0) for _ in range(min(_CHUNK_ROWS, count - at))])

    async def run() -> None:
        tokens = SqliteRepository(path=path)
        try:
            assert await run_sweep(tokens, TokenCipher(encryption=local_encryption(2))) == count
        finally:
            await tokens.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
