"""The sweep in each direction on both stores, beside a plain loop, and what ten million rows would take."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final
from uuid import uuid4

import psycopg

from app.composition import Encryption, build_encryption, open_repository
from app.config.settings import Settings
from app.observability.counters import InMemoryCounters
from app.reseal_process import COMMAND, first_line
from app.rewrap.resealer import Resealer
from app.rewrap.resealing_here import ResealerHere
from app.rewrap.resealing_processes import ResealerProcesses
from app.security.kms.cost import price_of
from app.security.kms.data_key_cache import DataKeyCache
from app.security.kms.strategy import KmsEnvelopeStrategy
from app.security.local import LocalStrategy
from app.security.service import EncryptionService
from app.server.workers import open_variables
from app.tokens.cipher import TokenCipher
from app.tokens.models import StoredToken
from app.tokens.repository import TokenRepository
from benchmarks.bench import Bench
from benchmarks.kms_stand_in import ARNS
from benchmarks.rewrap_runs import Run, plain_loop, swept
from benchmarks.servers import supabase_project
from benchmarks.table import Line, Target
from tests.support.rewrap.stored_rows import KEYS, Row, SqliteRows, key_settings
from tests.support.rewrap.sweeps import bound_row, pulseplan_row

PROCESSES: Final = 2
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
    """From the settings that wrote, `None` for PulsePlan's own code, to those that write now."""

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
    ):
        aws = {
            "AWS_ENDPOINT_URL_KMS": f"http://127.0.0.1:{kms.port}",
            "AWS_REGION": "eu-west-1",
            "AWS_ACCESS_KEY_ID": "benchmarks",
            "AWS_SECRET_ACCESS_KEY": "none",
        }
        for store in (_sqlite(bench.folder), _supabase(project)):
            for direction in _DIRECTIONS:
                rows = direction.quick_rows if bench.quick else direction.rows
                with asyncio.Runner() as runner:  # the command's own loop, for both
                    loop = runner.run(_measured(store, direction, aws, few, processes=None))
                    for processes in (1, PROCESSES):
                        ours = runner.run(_measured(store, direction, aws, rows, processes=processes))
                        lines += _lines(store, direction, ours, loop, processes)
    return lines


def _lines(store: _Store, direction: _Direction, ours: Run, loop: Run, processes: int) -> list[Line]:
    name = f"rewrap {direction.name}, {store.name}"
    target = direction.target_of_ratio if store.name == "Supabase" else None
    if processes > 1:
        name = f"  with --processes {processes}"
    requests = round(ours.kms_requests / ours.rows * _TEN_MILLION) if processes == 1 else 0  # the others' are theirs
    return [
        Line(name, ours.rate, "rows/s", ours.rate / loop.rate, "a plain loop", target),
        Line("  ten million rows", _TEN_MILLION / ours.rate / _HOUR_SECONDS, "h"),
        *([Line("  their requests to KMS", float(price_of(requests)), "dollars")] if requests else []),
    ]


async def _measured(
    store: _Store, direction: _Direction, aws: dict[str, str], rows: int, *, processes: int | None
) -> Run:
    """Fill the store, and move everything: in so many processes, or in a plain loop."""
    store.clear()
    for chunk in _rows(direction, aws, rows):
        store.insert(chunk)
    settings = direction.target | aws
    counters = InMemoryCounters()
    async with _opened(store.settings | settings, counters) as (tokens, encryption):
        cipher = TokenCipher(encryption=encryption.service)
        await cipher.prove_primary()  # the start of a process is not what is measured
        before = _kms_requests(counters)
        if processes is None:
            found = await _all_rows(tokens)
            forgetful = _forgetful(_settings(settings), encryption, counters)
            began = perf_counter()
            moved = await plain_loop(tokens, forgetful, found)
        else:
            began = perf_counter()
            moved = await _swept(tokens, ResealerHere(cipher=cipher), store.settings | settings, processes)
        run = Run(moved, perf_counter() - began, _kms_requests(counters) - before)
    assert run.rows == rows
    return run


async def _swept(tokens: TokenRepository, here: Resealer, settings: dict[str, str], processes: int) -> int:
    """Sweep as the command does; the start of its processes counts."""
    if processes == 1:
        return await swept(tokens, here)
    several = ResealerProcesses(
        here=here,
        command=COMMAND,
        environment=open_variables(),
        first_line=first_line(_settings(settings)),
        processes=processes,
    )
    async with several:
        return await swept(tokens, several)


def _forgetful(
    settings: Settings, encryption: Encryption, counters: InMemoryCounters
) -> Callable[[], EncryptionService]:
    """Return what makes a service without a data key in its memory."""
    kms, keyring = encryption.kms, settings.keyring()
    if kms is None or keyring is None:
        return lambda: encryption.service
    local = LocalStrategy(keyring=keyring)

    def service() -> EncryptionService:
        data_keys = DataKeyCache(max_age_seconds=1, max_messages=1, size=1, counters=counters)
        under_kms = KmsEnvelopeStrategy(kms=kms, data_keys=data_keys)
        first, second = (under_kms, local) if settings.use_kms else (local, under_kms)
        return EncryptionService(primary=first, readers=[second], counters=counters)

    return service


def _rows(direction: _Direction, aws: dict[str, str], count: int) -> Iterator[list[Row]]:
    """Make one token for each user, the most expensive case: no two share a key."""
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


def _supabase(project: dict[str, str]) -> _Store:
    def run(statement: bytes, *parameters: str) -> None:
        with psycopg.connect(project["POSTGRES_URI"], autocommit=True) as connection:
            connection.execute(statement, parameters)

    def insert(rows: list[Row]) -> None:
        run(
            b"insert into public.oauth_tokens"
            b" select * from jsonb_populate_recordset(null::public.oauth_tokens, %s::jsonb)",
            json.dumps(rows),
        )

    settings = {name: project[name] for name in ("SUPABASE_URL", "SUPABASE_SERVICE_KEY")}
    settings["TOKEN_STORE"] = "supabase"
    return _Store("Supabase", settings, insert, lambda: run(b"truncate public.oauth_tokens"))
