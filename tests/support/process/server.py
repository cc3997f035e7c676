"""`token-vault serve` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx

from tests.support.process.home import COMMAND, Home, environment
from tests.support.stack.loopback import LOOPBACK, PLAIN_HTTP
from tests.support.stack.reaper import Reaper

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 20.0
_PAUSE_SECONDS: Final = 0.02


class Serve(Protocol):
    """Serves inside of a `with` block; whatever still runs at its end is killed."""

    def __call__(self, home: Home, *, workers: int = 1) -> AbstractContextManager[Server]: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """How a server ended: its exit code, negative for a signal, and all that it printed."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running vault. It leads a process group of its own, which its workers belong to."""

    home: Home
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        return int(self.home.settings["PORT"])

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def output(self) -> str:
        """Return what it has printed so far, on both streams."""
        return self.log.read_text()

    def client(self, service_key: str | None = None) -> httpx.Client:
        """Return a client with the home's service key, or with another."""
        key = service_key or self.home.service_key
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, verify=PLAIN_HTTP
        )

    def terminate(self) -> None:
        """Send SIGTERM to the process that was started, as an orchestrator does, and don't wait."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> Ended:
        """Wait for the end."""
        deadline = time.monotonic() + STOP_SECONDS
        while self.is_running():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server did not end:\n{self.output}")
            time.sleep(_PAUSE_SECONDS)
        self._kill_group()  # workers that lost their parent
        return Ended(self.process.wait(), self.output)

    def stop(self) -> Ended:
        self.terminate()
        return self.ended()

    def kill(self) -> Ended:
        """End the process and its workers at once, with SIGKILL."""
        self._kill_group()
        return self.ended()

    def is_running(self) -> bool:
        """Whether the process has not ended yet; one that has stays unreaped, so that its id remains ours."""
        if self.process.returncode is not None:
            return False
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def refuses_connections(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    def wait_until_up(self, workers: int) -> None:
        """Wait until `/healthz` answers and each worker has started; raise with the output if that fails."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.is_running():
            if self.output.count("Application startup complete") >= workers and self._is_healthy():
                return
            time.sleep(_PAUSE_SECONDS)
        raise RuntimeError(f"the server did not start:\n{self.output}")

    def _is_healthy(self) -> bool:
        try:
            return httpx.get(f"{self.url}/healthz", trust_env=False, timeout=2, verify=PLAIN_HTTP).is_success
        except httpx.TransportError:
            return False

    def _kill_group(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def serving(home: Home, *, workers: int = 1, reaper: Reaper) -> Iterator[Server]:
    """Serve in this home inside of the block."""
    log = home.folder / f"serve-{time.monotonic_ns()}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [COMMAND, "serve", "--workers", str(workers)],
            cwd=home.folder,
            # beside the home, for what a killed server cannot remove
            env={"TMPDIR": str(home.folder.parent), **environment(home.settings)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    reaper.watch(process.pid, signal.SIGTERM)
    server = Server(home, process, log)
    try:
        server.wait_until_up(workers)
        yield server
    finally:
        if process.returncode is None:
            server.kill()
        reaper.forget(process.pid)
