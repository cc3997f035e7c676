"""A vault that is started in a way of its own: over TLS, or as somebody else."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.process.home import COMMAND, Home, environment
from tests.support.stack.reaper import Reaper

START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Started:
    """A vault of which each worker has started."""

    pid: int
    log: Path

    @property
    def output(self) -> str:
        return self.log.read_text()


@contextmanager
def started(
    home: Home, *options: str, reaper: Reaper, workers: int = 1, prefix: tuple[str, ...] = ()
) -> Iterator[Started]:
    """Run `token-vault serve` with these options, as the argument of `prefix` where there is one."""
    log = home.folder / f"started-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*prefix, COMMAND, "serve", "--workers", str(workers), *options],
            cwd=home.folder,
            env=environment(home.settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    reaper.watch(process.pid, signal.SIGTERM)
    try:
        deadline = time.monotonic() + START_SECONDS
        while log.read_text().count("Application startup complete") < workers or "running on" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        yield Started(process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reaper.forget(process.pid)
