"""`token-vault serve` as a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import httpx

from tests.support.process.home import COMMAND, Home, environment
from tests.support.process.prepared import PreparedServer
from tests.support.stack.loopback import LOOPBACK, PLAIN_HTTP, listens
from tests.support.stack.reaper import Reaper

START_SECONDS: Final = 120.0  # shows a hang, also on a busy machine
STOP_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.02


class Serve(Protocol):
    """Starts `token-vault serve` with these options and kills what still runs at the end of the `with` block.

    The server and its workers are forked with everything imported, unless the `installed` program is asked for.
    `prefix` is a command that runs the installed program as its argument.
    """

    def __call__(
        self, home: Home, *options: str, workers: int = 1, installed: bool = False, prefix: tuple[str, ...] = ()
    ) -> AbstractContextManager[Server]: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """Exit code of a server, negative for a signal, and its whole output."""

    exit_code: int
    output: str


@dataclass(frozen=True, slots=True)
class Server:
    """A running vault: the leader of a process group that its workers belong to."""

    home: Home
    process: subprocess.Popen[bytes] | PreparedServer
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.home.settings["PORT"])

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def output(self) -> str:
        """What it has printed so far, on both streams."""
        return self.log.read_text()

    def client(self, service_key: str | None = None) -> httpx.Client:
        """Return an HTTP client with this service key; without one, with the home's."""
        key = service_key or self.home.service_key
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False, verify=PLAIN_HTTP
        )

    def terminate(self) -> None:
        """Send SIGTERM to the process that was started, as an orchestrator does, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> Ended:
        """Wait until the server has ended."""
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
        """Send SIGKILL to the process and its workers."""
        self._kill_group()
        return self.ended()

    def is_running(self) -> bool:
        """Whether the process has not ended yet. An ended one stays unreaped, so its id is not reused."""
        if isinstance(self.process, PreparedServer) or self.process.returncode is not None:
            return self.process.returncode is None
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def refuses_connections(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1).close()
        except ConnectionRefusedError:
            return True
        return False

    def wait_until_up(self, workers: int) -> None:
        """Wait until this many workers have started in all and the port is open; raise with the output if one fails."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.is_running():
            printed = self.output
            # both lines come before the port is open
            if printed.count("Application startup complete") >= workers and "running on" in printed and self._listens():
                return
            time.sleep(_PAUSE_SECONDS)
        raise RuntimeError(f"the server did not start:\n{self.output}")

    def _listens(self) -> bool:
        settings = self.home.settings
        return all(listens(int(settings[name])) for name in ("PORT", "METRICS_PORT") if name in settings)

    def _kill_group(self) -> None:
        # a forked server that has ended is reaped; its group lives while a worker does
        if self.process.returncode is None or isinstance(self.process, PreparedServer):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def serving(
    home: Home,
    *options: str,
    reaper: Reaper,
    workers: int = 1,
    installed: bool = False,
    prefix: tuple[str, ...] = (),
) -> Iterator[Server]:
    """Implement `Serve`; `reaper` ends the server even if this test process is killed."""
    log = home.folder / f"serve-{time.monotonic_ns()}.log"
    command = [*prefix, COMMAND, "serve", "--workers", str(workers), *options]
    # a killed server leaves its temporary folder, so it must not be in the home
    variables = {"TMPDIR": str(home.folder.parent), **environment(home.settings)}
    process: subprocess.Popen[bytes] | PreparedServer
    log.touch()
    if not prefix and not installed:
        process = PreparedServer(*command, folder=home.folder, environment=variables, log=log)
    else:
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=home.folder,
                env=variables,
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
