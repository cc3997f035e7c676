"""The audit trail on a disk that hangs: a full pipe without a reader."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.api.service import running_service
from tests.support.audit.trails import KEY_TEXT
from tests.support.failures.scenario import require_documented_failure
from tests.support.stores.stores import SqliteStore

_PIPE_BYTES: Final = 4096
_PAUSE_SECONDS: Final = 0.01


def test_audit_disk_hangs(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    settings = {"AUDIT_LOG": str(pipe), "AUDIT_KEY": KEY_TEXT, **store.environment()}
    with _reading(pipe) as reads, running_service(tmp_path, settings) as service:
        require_documented_failure(
            "Audit trail's disk slow or hanging",
            service=service,
            store=store,
            breaks=reads.clear,
            mends=reads.set,
        )


@contextmanager
def _reading(pipe: Path) -> Iterator[threading.Event]:
    """Read the pipe while the yielded event is set."""
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
