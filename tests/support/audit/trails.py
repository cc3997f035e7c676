"""Trails as a process keeps them, and what is found in their files."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from app.audit.file_target import SYSTEM_CALLS, FileCalls, FileTarget
from app.audit.findings import Report
from app.audit.keys import AuditKey
from app.audit.lines import Chain, parse_line
from app.audit.log_files import LogFiles
from app.audit.target import AuditTarget
from app.audit.trail import AuditLog
from app.audit.verify import Verifier
from app.audit.writer import FLUSH_SECONDS, RETRY_SECONDS, Sync
from app.observability.counters import InMemoryAuditCounters
from app.security.context import SecretField
from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import Caller, TokenId

SECRET: Final = bytes(range(32))
KEY_TEXT: Final = base64.b64encode(SECRET).decode()
KEY: Final = AuditKey.derive(SECRET)
OTHER_KEY: Final = AuditKey.derive(bytes(32))
USER_ID: Final = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CALLER: Final = Caller("tests", "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e", "0123456789ab", "192.0.2.7", "nightly-sync")


def an_event(number: int = 0, *, outcome: str = SUCCESS, caller: Caller = CALLER) -> TokenEvent:
    user_id = str(UUID(int=number))
    return TokenEvent(
        operation=Operation.REVEAL,
        user_id=user_id,
        token_id=TokenId(user_id, "canvas"),
        revealed=(SecretField.ACCESS_TOKEN,) if outcome == SUCCESS else (),
        scheme="local:v1",
        encryption_method="aes256-gcm-v1",
        outcome=outcome,
        detail=None,
        caller=caller,
    )


@asynccontextmanager
async def opened_trail(
    folder: Path,
    *,
    key: AuditKey = KEY,
    previous_keys: Sequence[AuditKey] = (),
    sync: Sync = "interval",
    maximum_bytes: int = 64 * 1024 * 1024,
    target: AuditTarget | None = None,
    system: FileCalls = SYSTEM_CALLS,
    bound_seconds: float = 2.0,
    flush_seconds: float = FLUSH_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
    counters: InMemoryAuditCounters | None = None,
) -> AsyncIterator[AuditLog]:
    chain = Chain(key=key)
    trail = AuditLog(
        target=target
        or FileTarget(
            family=family(folder),
            chain=chain.id,
            maximum_bytes=maximum_bytes,
            flushing=sync != "off",
            system=system,
        ),
        chain=chain,
        sync=sync,
        counters=counters or InMemoryAuditCounters(),
        previous_keys=previous_keys,
        bound_seconds=bound_seconds,
        flush_seconds=flush_seconds,
        retry_seconds=retry_seconds,
    )
    await trail.open()
    try:
        yield trail
    finally:
        await trail.close()


async def append_all(trail: AuditLog, events: Sequence[TokenEvent], *, together: int = 16) -> None:
    for start in range(0, len(events), together):
        await asyncio.gather(*map(trail.append, events[start : start + together]))


def keep(folder: Path, count: int, *, key: AuditKey = KEY, maximum_bytes: int = 64 * 1024 * 1024) -> list[Path]:
    """Keep so many events in a chain that ends, and return its files."""
    before = set(files(folder))

    async def run() -> None:
        async with opened_trail(folder, key=key, maximum_bytes=maximum_bytes) as trail:
            for number in range(count):  # one write for each, so that files fill evenly
                await trail.append(an_event(number))

    asyncio.run(run())
    return [path for path in files(folder) if path not in before]


def interrupt(file: Path, *, torn: bytes = b"") -> None:
    """Leave a chain's last file as a kill does: without its end, and maybe with half a line."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + torn)


def family(folder: Path) -> LogFiles:
    return LogFiles(folder / "audit.jsonl")


def files(folder: Path) -> list[Path]:
    return family(folder).files() if folder.exists() else []


def verified(paths: Sequence[Path], *, partial: bool = False, keys: Sequence[AuditKey] = (KEY,)) -> Report:
    return Verifier(keys=keys, partial=partial).verify(paths)


def problems(report: Report) -> list[str]:
    return [finding.problem for finding in report.findings]


def members(paths: Sequence[Path], kind: str = "event") -> list[dict[str, Any]]:
    """Return the lines of this kind, as objects."""
    lines = [parse_line(text) for path in paths for text in path.read_bytes().splitlines()]
    return [line.members() for line in lines if line is not None and line.kind == kind]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
