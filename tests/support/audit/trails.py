"""Audit trails written and verified in-process."""

from __future__ import annotations

import asyncio
import base64
import fcntl
import os
import resource
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from app.audit.chained_lines import Chain, parse_line
from app.audit.log_files import LogFiles
from app.audit.signing_key import AuditKey
from app.audit.targets import SYSTEM_CALLS, AuditTarget, DiskCalls, FileTarget
from app.audit.trail import SignedAuditTrail
from app.audit.verify import VerificationReport, Verifier
from app.audit.writer import FLUSH_SECONDS, Sync
from app.errors import AuditUnavailable
from app.observability.in_memory_counters import InMemoryAuditCounters
from app.security.context import SecretField
from app.tokens.events import SUCCESS, Operation, TokenEvent
from app.tokens.models import Caller, TokenId

SECRET: Final = bytes(range(32))
KEY_TEXT: Final = base64.b64encode(SECRET).decode()
KEY: Final = AuditKey.derive(SECRET)
OTHER_KEY: Final = AuditKey.derive(bytes(32))
CALLER: Final = Caller("tests", "0b5c2f0e9d7c4d0c8e8f6f3d9a7b1c2e", "0123456789ab", "192.0.2.7", "nightly-sync")
WITHOUT_KEY: Final = Caller("", "a-request", address="192.0.2.9")
MAXIMUM_BYTES: Final = 64 * 1024 * 1024
RECOVERY_SECONDS: Final = 120.0  # a bound for a busy machine; a trail in a test retries 20 times a second


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
    sync: Sync = "interval",
    maximum_bytes: int = MAXIMUM_BYTES,
    target: AuditTarget | None = None,
    system: DiskCalls = SYSTEM_CALLS,
    bound_seconds: float = RECOVERY_SECONDS,
    flush_seconds: float = FLUSH_SECONDS,
    retry_seconds: float = 0.05,
    counters: InMemoryAuditCounters | None = None,
) -> AsyncIterator[SignedAuditTrail]:
    chain = Chain(key=key)
    trail = SignedAuditTrail(
        target=target
        or FileTarget(
            log_files=log_files(folder),
            chain=chain.id,
            maximum_bytes=maximum_bytes,
            flushing=sync != "off",
            system=system,
        ),
        chain=chain,
        sync=sync,
        counters=counters or InMemoryAuditCounters(),
        bound_seconds=bound_seconds,
        flush_seconds=flush_seconds,
        retry_seconds=retry_seconds,
    )
    await trail.open()
    try:
        yield trail
    finally:
        await trail.close()


async def append_all(trail: SignedAuditTrail, events: Sequence[TokenEvent], *, together: int = 16) -> None:
    for start in range(0, len(events), together):
        await asyncio.gather(*map(trail.append, events[start : start + together]))


async def recovered(trail: SignedAuditTrail) -> None:
    """Wait until the trail can be written again."""
    async with asyncio.timeout(RECOVERY_SECONDS):
        while True:
            try:
                await trail.check()  # unlike `require_open`, it counts no refusal
            except AuditUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


def keep(folder: Path, count: int, *, key: AuditKey = KEY, maximum_bytes: int = MAXIMUM_BYTES) -> list[Path]:
    """Write a chain of `count` events that ends, and return its files."""
    before = set(files(folder))

    async def run() -> None:
        # without fdatasync, which these tests do not need and which takes most of the time
        async with opened_trail(folder, key=key, maximum_bytes=maximum_bytes, sync="off") as trail:
            for number in range(count):  # one write for each, so that files fill evenly
                await trail.append(an_event(number))

    asyncio.run(run())
    return [path for path in files(folder) if path not in before]


def interrupt(file: Path, *, torn: bytes = b"") -> None:
    """Leave a chain's last file as a kill does: without its end line, and with `torn` after its last event."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + torn)


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Stand-in of a full disk: RLIMIT_FSIZE cuts a write short in the same way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def full_disk(file: Path) -> Iterator[None]:
    """Leave space for half a line in the file."""
    with file_size_limit(file.stat().st_size + 300):
        yield


class HeldDisk:
    """The real system calls, except that a flush waits while the disk is held; for trails that flush each write."""

    def __init__(self) -> None:
        self._released = threading.Event()
        self._released.set()
        self._waiting = threading.Event()
        self.calls = DiskCalls(fdatasync=self._fdatasync)

    def hold(self) -> None:
        self._waiting.clear()
        self._released.clear()

    def release(self) -> None:
        self._released.set()

    async def is_waited_for(self) -> None:
        """Wait until a flush waits."""
        assert await asyncio.to_thread(self._waiting.wait, RECOVERY_SECONDS)

    def _fdatasync(self, descriptor: int) -> None:
        if not self._released.is_set():
            self._waiting.set()
            self._released.wait(RECOVERY_SECONDS)
        os.fdatasync(descriptor)


@contextmanager
def unread_fifo(folder: Path) -> Iterator[tuple[Path, int]]:
    """Stand-in of a disk that hangs: a FIFO for about six events, and the descriptor of its non-blocking reader."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    try:
        yield fifo, reader
    finally:
        os.close(reader)


def log_files(folder: Path) -> LogFiles:
    return LogFiles(folder / "audit.jsonl")


def files(folder: Path) -> list[Path]:
    return log_files(folder).files() if folder.exists() else []


def chain_of(file: Path) -> str:
    return file.name.split(".")[1]


def verified(paths: Sequence[Path], *, partial: bool = False, keys: Sequence[AuditKey] = (KEY,)) -> VerificationReport:
    return Verifier(keys=keys, partial=partial).verify(paths)


def problems(report: VerificationReport) -> list[str]:
    return [finding.problem for finding in report.findings]


def notes(report: VerificationReport) -> list[str]:
    return [note.problem for note in report.notes]


def members(paths: Sequence[Path], kind: str = "event") -> list[dict[str, Any]]:
    """Return the members of every line of this kind."""
    lines = [parse_line(text) for path in paths for text in path.read_bytes().splitlines()]
    return [line.members() for line in lines if line is not None and line.kind == kind]


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
