"""The folder in which several worker processes keep their metrics.

prometheus-client gives each process files of its own, which a scrape of any worker reads and adds up. Counters and
histograms of a worker that has died stay, for what it did was done; its gauges must go, for it is nothing any more.
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
    """One worker's place in the folder. It holds a lock there, which its end gives up however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mine = self._enter(path / f"{_ALIVE}{os.getpid()}")

    def registry(self) -> CollectorRegistry:
        """Return a registry that collects from all workers."""
        self._forget_the_dead()
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=str(self._path))  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
        return registry

    def close(self) -> None:
        self._mine.close()

    @staticmethod
    def _enter(file: Path) -> BinaryIO:
        """Lock our file, before there is any metric of ours; again where another worker took it for a dead one's."""
        while True:
            mine = file.open("wb")
            fcntl.flock(mine, fcntl.LOCK_EX)
            if file.exists() and file.stat().st_ino == os.fstat(mine.fileno()).st_ino:
                return mine
            mine.close()

    def _forget_the_dead(self) -> None:
        for file in self._path.glob(f"{_ALIVE}*"):
            lock = self._lock(file)
            if lock is None:
                continue  # its worker lives
            with lock, suppress(FileNotFoundError):  # another worker may be tidying up too
                dead = int(file.name.removeprefix(_ALIVE))
                multiprocess.mark_process_dead(dead, path=str(self._path))  # type: ignore[no-untyped-call]  # prometheus_client leaves it untyped
                file.unlink()

    @staticmethod
    def _lock(file: Path) -> BinaryIO | None:
        """Return the file, locked, or `None` where somebody else holds it."""
        lock = file.open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            return None
        return lock
