"""The folder that worker processes share for their metrics.

prometheus-client writes files for each process, and a scrape of any worker adds them up. The counters and histograms of
a dead worker stay, because its work was done; its gauges are removed.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from prometheus_client import CollectorRegistry, multiprocess

_ALIVE = "alive_"


class WorkerFolder:
    """A worker's entry in the folder: a locked file. The lock ends with the process, however that ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entry = self._locked_entry(path / f"{_ALIVE}{os.getpid()}")

    def registry(self) -> CollectorRegistry:
        """Return a registry that collects from all workers, without the gauges of dead ones."""
        self._remove_dead_workers()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(self._path))  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        return registry

    def close(self) -> None:
        self._entry.close()

    @staticmethod
    def _locked_entry(file: Path) -> BinaryIO:
        """Create and lock our file; again if another worker has removed it in between as a dead worker's.

        Call it before the first metric exists: an earlier metric's files would be removed too.
        """
        while True:
            entry = file.open("wb")
            fcntl.flock(entry, fcntl.LOCK_EX)
            if file.exists() and file.stat().st_ino == os.fstat(entry.fileno()).st_ino:
                return entry
            entry.close()

    def _remove_dead_workers(self) -> None:
        for file in self._path.glob(f"{_ALIVE}*"):
            lock = self._lock(file)
            if lock is None:
                continue  # alive
            with lock, suppress(FileNotFoundError):  # another worker has removed it
                dead = int(file.name.removeprefix(_ALIVE))
                multiprocess.mark_process_dead(dead, path=str(self._path))  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
                file.unlink()

    @staticmethod
    def _lock(file: Path) -> BinaryIO | None:
        """Return the locked file, or `None` if its worker holds the lock."""
        lock = file.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock
