"""The audit trail on a disk that hangs: a pipe that nobody reads, and that is soon full."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from tests.api.service import running_service
from tests.audit.trails import KEY_TEXT
from tests.failures.scenario import demand
from tests.tokens.stores import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PIPE_BYTES: Final = 4096
_PAUSE_SECONDS: Final = 0.01


def test_audit_disk_hangs(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = {"AUDIT_LOG": str(pipe), "AUDIT_KEY": KEY_TEXT, **store.environment()}
    with _read(pipe) as reads, running_service(tmp_path, settings) as service:
        demand(
            "Audit trail's disk slow or hanging",
            service=service,
            store=store,
            breaks=reads.clear,
            mends=reads.set,
        )


@contextmanager
def _read(pipe: Path) -> Iterator[threading.Event]:
    """Read while the event is set."""
    reads, over = threading.Event(), threading.Event()
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def run() -> None:
        while not over.wait(_PAUSE_SECONDS):
            try:
                while reads.is_set() and os.read(reader, _PIPE_BYTES):
                    pass
            except BlockingIOError:
                continue

    reads.set()
    thread = threading.Thread(target=run, name="pipe-reader")
    thread.start()
    try:
        yield reads
    finally:
        over.set()
        thread.join()
        os.close(reader)
