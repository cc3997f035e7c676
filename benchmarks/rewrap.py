"""The sweep in each direction on both stores beside a plain loop, alone and as two shards, and for ten million rows."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import psycopg

from app.composition.encryption import Encryption, build_encryption
from app.composition.stores import open_repository
from app.config.settings import Settings
from app.observability.in_memory_counters import InMemoryCounters
from app.rewrap.key_ranges import Shard
from app.security.encryption_service import EncryptionService
from app.security.kms.cost import price_of
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from app.security.local_strategy import LocalStrategy
from app.tokens.cipher import TokenCipher
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository
from benchmarks.bench import Bench
from benchmarks.kms_stand_in import ARNS
from benchmarks.rewrap_runs import Run, plain_loop, run_sweep
from benchmarks.servers import Database, supabase_project
from benchmarks.table import Line, Target
from tests.support.rewrap.stored_rows import KEYS, Row, SqliteRows, key_settings
from tests.support.rewrap.sweeps import bound_row, pulseplan_row

SHARDS: Final = 2
_TEN_MILLION: Final = 10_000_000
_MANY: Final = 100_000
_FEW: Final = 200
_QUICK_FEW: Final = 40
_CHUNK_ROWS: Final = 1_000
_HOUR_SECONDS: Final = 3_600
_LOCAL_2: Final = key_settings(2, 1)
_KMS_A: Final = {**_LOCAL_2, "USE_KMS": "true", "KMS_KEY_ID": ARNS[0]}
_KMS_B: Final = {**_LOCAL_2, "USE_KMS": "true", "KMS_KEY_ID": ARNS[1], "KMS_PREVIOUS_KEY_IDS": json.dumps([ARNS[0]])}


@dataclass(frozen=True, slots=True)
class _Direction:
    """From the settings `source`, `None` for PulsePlan's own code, to the settings `target`."""

    name: str
    source: dict[str, str] | None
    target: dict[str, str]
    target_of_ratio: Target | None = None
    rows: int = 4_000
    quick_rows: int = 300


_TENFOLD: Final = Target(at_least=10, of_ratio=True)
_DIRECTIONS: Final = (
    _Direction("local v1 to v2", key_settings(1), _LOCAL_2, rows=_MANY),
    _Direction("local to KMS", key_settings(1), _KMS_A, _TENFOLD, rows=_MANY),
    _Direction("KMS key A to B", _KMS_A, _KMS_B, _TENFOLD),
    _Direction("KMS to local", _KMS_A, {**_KMS_A, "USE_KMS": "false"}, _TENFOLD),
    _Direction(
        "PulsePlan's format to bound", None, _LOCAL_2, rows=_FEW, quick_rows=_QUICK_FEW
    ),  # PBKDF2 for each user is most of it
)


@dataclass(frozen=True, slots=True)
class _Store:
    name: str
    settings: dict[str, str]
    insert: Callable[[list[Row]], None]
    clear: Callable[[], None]


def measure(bench: Bench) -> list[Line]:
    few = _QUICK_FEW if bench.quick else _FEW
    lines = []
    with (
        bench.servers.program("kms", "benchmarks.kms_stand_in") as kms,
        supabase_project(bench.folder, bench.reaper) as project,
        ProcessPoolExecutor(SHARDS, mp_context=get_context("spawn")) as sweepers,
    ):
        wait([sweepers.submit(time.sleep, 1) for _ in range(SHARDS)])  # both processes have imported this module
        aws = {
            "AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{kms.port}",
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "benchmarks",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        for store in (_sqlite(bench.folder), _supabase(project)):
            for direction in _DIRECTIONS:
                rows = direction.quick_rows if bench.quick else direction.rows
                settings = store.settings | direction.target | aws
                _fill(store, direction, aws, few)
                loop = asyncio.run(_run_plain_loop(settings))
                for shards in (1, SHARDS):
                    _fill(store, direction, aws, rows)
                    sweep = _run_shards(sweepers, settings, shards)
                    assert sweep.rows == rows
                    lines += _lines(store, direction, sweep, loop, shards)
    return lines


def _lines(store: _Store, direction: _Direction, sweep: Run, loop: Run, shards: int) -> list[Line]:
    name = f"rewrap {direction.name}, {store.name}"
    target = direction.target_of_ratio if store.name == "Supabase" else None
    if shards > 1:
        name = f"  {shards} shards at once"
    requests = round(sweep.kms_requests / sweep.rows * _TEN_MILLION)
    return [
        Line(name, sweep.rate, "rows/s", sweep.rate / loop.rate, "a plain loop", target),
        Line("  ten million rows", _TEN_MILLION / sweep.rate / _HOUR_SECONDS, "h"),
        *([Line("  their requests to KMS", float(price_of(requests)), "dollars")] if requests else []),
    ]


def _run_shards(sweepers: ProcessPoolExecutor, settings: dict[str, str], shards: int) -> Run:
    """Rewrap everything in so many processes, each with its shard."""
    parts = [Shard(number, shards) for number in range(1, shards + 1)]
    runs = [running.result() for running in [sweepers.submit(_run_shard, settings, part) for part in parts]]
    # the system's clock, the same in every process
    seconds = max(ended for _, _, ended in runs) - min(began for _, began, _ in runs)
    return Run(sum(run.rows for run, _, _ in runs), seconds, sum(run.kms_requests for run, _, _ in runs))


def _run_shard(settings: dict[str, str], shard: Shard) -> tuple[Run, float, float]:
    """Return the run, and when it began and ended, without the start of the process."""

    async def run() -> tuple[Run, float, float]:
        counters = InMemoryCounters()
        async with _opened(settings, counters) as (tokens, encryption):
            cipher = TokenCipher(encryption=encryption.service)
            await cipher.prove_primary()
            before, began = _kms_requests(counters), time.monotonic()
            rewrapped = await run_sweep(tokens, cipher, shard)
            ended = time.monotonic()
            return Run(rewrapped, ended - began, _kms_requests(counters) - before), began, ended

    return asyncio.run(run())


async def _run_plain_loop(settings: dict[str, str]) -> Run:
    counters = InMemoryCounters()
    async with _opened(settings, counters) as (tokens, encryption):
        await TokenCipher(encryption=encryption.service).prove_primary()
        rows = await _all_rows(tokens)
        uncached = _uncached_service(_settings(settings), encryption, counters)
        before, began = _kms_requests(counters), time.monotonic()
        rewrapped = await plain_loop(tokens, uncached, rows)
        return Run(rewrapped, time.monotonic() - began, _kms_requests(counters) - before)


def _fill(store: _Store, direction: _Direction, aws: dict[str, str], rows: int) -> None:
    store.clear()
    for chunk in _rows(direction, aws, rows):
        store.insert(chunk)


def _uncached_service(
    settings: Settings, encryption: Encryption, counters: InMemoryCounters
) -> Callable[[], EncryptionService]:
    """Return a factory of encryption services without cached data keys."""
    kms, keyring = encryption.kms, settings.keyring()
    if kms is None or keyring is None:
        return lambda: encryption.service
    local = LocalStrategy(keyring=keyring)

    def service() -> EncryptionService:
        data_keys = DataKeyCache(max_age_seconds=1, max_messages=1, size=1, counters=counters)
        under_kms = KmsEnvelopeStrategy(key_service=kms, data_keys=data_keys)
        first, second = (under_kms, local) if settings.use_kms else (local, under_kms)
        return EncryptionService(primary=first, readers=[second], counters=counters)

    return service


def _rows(direction: _Direction, aws: dict[str, str], count: int) -> Iterator[list[Row]]:
    """Make one token for each user. That is the most expensive case: no two share a data key."""
    service = None if direction.source is None else _encryption(direction.source | aws).service
    for at in range(0, count, _CHUNK_ROWS):
        users = [str(uuid4()) for _ in range(min(_CHUNK_ROWS, count - at))]
        if service is None:
            yield [pulseplan_row(user, 0, prefix="v1:") for user in users]
        else:
            yield [bound_row(service, user, 0) for user in users]


async def _all_rows(tokens: TokenRepository) -> list[StoredToken]:
    found: list[StoredToken] = []
    for scheme in {line.scheme for line in await tokens.census()}:
        after = None
        while page := await tokens.page(scheme, after=after, limit=_CHUNK_ROWS):
            after = page[-1].id
            found += [row for row in page if isinstance(row, StoredToken)]
    return found


def _settings(values: dict[str, str]) -> Settings:
    named: dict[str, Any] = {name.lower(): value for name, value in values.items()}
    return Settings(_env_file=None, **{"token_encryption_key": KEYS[1], **named})  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere


def _encryption(values: dict[str, str]) -> Encryption:
    return build_encryption(_settings(values))


def _kms_requests(counters: InMemoryCounters) -> int:
    return sum(count for name, count in counters.counts.items() if name.startswith("kms_requests."))


@asynccontextmanager
async def _opened(
    values: dict[str, str], counters: InMemoryCounters
) -> AsyncIterator[tuple[TokenRepository, Encryption]]:
    settings = _settings(values)
    encryption, tokens = build_encryption(settings, counters=counters), await open_repository(settings)
    try:
        yield tokens, encryption
    finally:
        await tokens.close()
        encryption.close()


def _sqlite(folder: Path) -> _Store:
    rows = SqliteRows(folder / "rewrap.db")
    return _Store("SQLite", rows.settings(), rows.insert, lambda: rows.replace([]))


def _supabase(project: Database) -> _Store:
    def run(statement: bytes, *parameters: str) -> None:
        with psycopg.connect(project.superuser_url, autocommit=True) as connection:
            connection.execute(statement, parameters)

    def insert(rows: list[Row]) -> None:
        run(
            b"insert into public.oauth_tokens"
            b" select * from jsonb_populate_recordset(null::public.oauth_tokens, %s::jsonb)",
            json.dumps(rows),
        )

    settings = dict(project.supabase)
    settings["TOKEN_STORE"] = "supabase"
    return _Store("Supabase", settings, insert, lambda: run(b"truncate public.oauth_tokens"))
