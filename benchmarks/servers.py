"""Server processes that are always stopped."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import LOOPBACK
from benchmarks.processor import processor_seconds
from tests.support.stack.loopback import free_port
from tests.support.stack.reaper import Reaper

_ROOT = Path(__file__).parents[1]
# structlog imports rich if it is installed, which it is here and is not where users install the vault
_PYTHON_PATH = f"{_ROOT}:{_ROOT / 'tests' / 'support' / 'absent'}"
_TOKEN_VAULT = Path(sys.executable).with_name("token-vault")
_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.002


@dataclass(frozen=True, slots=True)
class Server:
    """A server process, and the time from its start to its first answer: by the clock, and of the processor."""

    port: int
    pid: int
    start_seconds: float
    start_processor_seconds: float

    def resident_bytes(self) -> int:
        """Return the resident set size of the process."""
        return resident_bytes(self.pid)


@dataclass(frozen=True, slots=True)
class Servers:
    """Starts servers with the given settings and without the environment of this process.

    Each has a folder for its database and its log.
    """

    folder: Path
    reaper: Reaper
    settings: Mapping[str, str]

    @contextmanager
    def vault(self, folder: str, settings: Mapping[str, str] | None = None, *, workers: int = 1) -> Iterator[Server]:
        """Serve with the command of production, with the log in a file."""
        port = free_port()
        command = [str(_TOKEN_VAULT), "serve", "--port", str(port), "--workers", str(workers)]
        with self.serving(folder, command, port, settings or {}) as server:
            _wait_until_all_have_started(self.folder / folder / "log", workers)
            yield server

    @contextmanager
    def program(
        self, folder: str, module: str, settings: Mapping[str, str] | None = None, *, workers: int = 1
    ) -> Iterator[Server]:
        """Serve with a module of the benchmarks that takes the port and the number of workers as its arguments."""
        port = free_port()
        command = [sys.executable, "-m", module, str(port), str(workers)]
        with self.serving(folder, command, port, settings or {}) as server:
            _wait_until_all_have_started(self.folder / folder / "log", workers)
            yield server

    @contextmanager
    def serving(
        self, name: str, command: Sequence[str], port: int, settings: Mapping[str, str], *, health: str = "/healthz"
    ) -> Iterator[Server]:
        """Run any server until the block ends; it is up once this path answers with 200."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        environment = {"PATH": os.environ.get("PATH", ""), "PYTHONPATH": _PYTHON_PATH, **self.settings, **settings}
        started = time.perf_counter()
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C stops this process, which stops the server
            )
        self.reaper.watch(process.pid, signal.SIGTERM)
        try:
            _wait_until_healthy(process, port, health, folder / "log")
            elapsed = time.perf_counter() - started
            yield Server(port, process.pid, elapsed, processor_seconds([process.pid]))
        finally:
            stop(process)
            self.reaper.forget(process.pid)


@dataclass(frozen=True, slots=True)
class Database:
    """A running Supabase project: what to reach it with, and the processes of its parts."""

    supabase: Mapping[str, str]  # SUPABASE_URL and SUPABASE_SERVICE_KEY
    url: str  # DATABASE_URL of a login role with the vault's privileges
    superuser_url: str
    postgrest_port: int
    postgres_pid: int
    postgrest_pid: int
    gateway_pid: int


@contextmanager
def supabase_project(folder: Path, reaper: Reaper) -> Iterator[Database]:
    """Start PostgreSQL, PostgREST and the gateway."""
    with (folder / "supabase.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.stack", "--durable"],
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    reaper.watch(process.pid, signal.SIGTERM)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the Supabase project does not start: {(folder / 'supabase.log').read_text()[-2000:]}")
        project = json.loads(line)
        yield Database(
            supabase={name: project[name] for name in ("SUPABASE_URL", "SUPABASE_SERVICE_KEY")},
            url=project["DATABASE_URL"],
            superuser_url=project["POSTGRES_URI"],
            postgrest_port=project["POSTGREST_PORT"],
            postgres_pid=project["POSTGRES_PID"],
            postgrest_pid=project["POSTGREST_PID"],
            gateway_pid=process.pid,
        )
    finally:
        stop(process)
        reaper.forget(process.pid)


def resident_bytes(pid: int) -> int:
    """Return the resident set size of a process."""
    kilobytes = Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]
    return int(kilobytes) * 1024


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, and kill it if it does not end."""
    process.terminate()
    try:
        process.wait(timeout=_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_healthy(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _is_healthy(port, path):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not answer: {log.read_text()[-2000:]}")
        time.sleep(_POLL_SECONDS)


def _wait_until_all_have_started(log: Path, workers: int) -> None:
    """Wait until every worker has started; one answer says nothing about the other workers."""
    deadline = time.monotonic() + _START_SECONDS
    while workers > 1 and log.read_text().count("Application startup complete") < workers:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a worker does not start: {log.read_text()[-2000:]}")
        time.sleep(_POLL_SECONDS)


def _is_healthy(port: int, path: str) -> bool:
    try:
        with socket.create_connection((LOOPBACK, port), timeout=_START_SECONDS) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: vault\r\nConnection: close\r\n\r\n".encode())
            return connection.recv(64).startswith(b"HTTP/1.1 200 ")
    except OSError:
        return False
