"""A server of the stack as a process: started, awaited, and stopped whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.support.stack.reaper import Reaper

_START_SECONDS: Final = 120.0
_STOP_SECONDS: Final = 30.0
_PAUSE_SECONDS: Final = 0.02


class ServerProcess(ABC):
    """One server, which can be stopped and started again.

    Its environment is PATH and `settings`, so that no setting of the machine reaches it.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        settings: Mapping[str, str],
        log: Path,
        reaper: Reaper,
    ) -> None:
        self._name = name
        self._command = command
        self._settings = settings
        self._log = log
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None, f"{self._name} does not run"
        return self._process.pid

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether the server answers."""

    def start(self) -> None:
        """Return once it answers; raise `RuntimeError` with its log if it does not start."""
        if self._process is not None:
            return
        # not this process's outputs: a program that reads those to the end would wait for the server
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={"PATH": os.environ.get("PATH", ""), **self._settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must not reach it: this process stops it
                start_new_session=True,
            )
        self._reaper.watch(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _START_SECONDS
        while not self.is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"{self._name} does not start: {self._log.read_text()[-2000:]}")
            time.sleep(_PAUSE_SECONDS)

    def stop(self) -> None:
        """Return once the process has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=_STOP_SECONDS)
        self._reaper.forget(process.pid)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve within the block."""
        try:
            self.start()
            yield
        finally:
            self.stop()
