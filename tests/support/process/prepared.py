"""Run `token-vault` in a forked process that has everything imported already.

A short command spends nearly all of its time on imports, and the tests run hundreds. So one process imports the
libraries and the vault, which reads no setting and starts nothing (tests/system/test_import_paths.py), and forks for
each command and each server. Tests of how the installed program starts, stops and dies run that program instead.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Never
from unittest import mock

from app.cli.group import COMMANDS
from tests.support.paths import ROOT
from tests.support.process.forked_workers import fork_workers

# a module search path on which the packages of the test environment that users do not have are missing
ABSENT_PACKAGES: Final = str(ROOT / "tests" / "support" / "absent")
BROKEN_TEXT: Final = "CANARY-of-a-library"
_PRELOADED: Final = (
    "__main__",  # else each command would import pytest's
    *(f"app.cli.{name.replace('-', '_')}" for name in COMMANDS),
    # imported lazily
    "app.cli.doctor_kms",
    "app.cli.unexpected_errors",
    "app.main",
    "app.refresh.exchange",
    "app.refresh.spool_recovery",
    "app.server.http_limits",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "app.security.kms.setup",
    "app.stores.supabase.repository",
    "tests.support.process.shared_roots",
    "tests.support.stack.aws_models",
)


class PreparedCommand:
    """A running command with empty standard input. Call `end` or `kill` once."""

    def __init__(
        self,
        program: str,
        arguments: tuple[str, ...],
        *,
        folder: Path,
        environment: Mapping[str, str],
        broken: str | None = None,
    ) -> None:
        self._command = [program, *arguments]
        self._outputs = TemporaryDirectory()
        self._streams = [Path(self._outputs.name, name) for name in ("stdout", "stderr")]
        self._process = _context(environment.get("PYTHONPATH", "")).Process(
            target=_become,
            args=(self._command, str(folder), dict(environment), [str(one) for one in self._streams]),
            kwargs={"broken": broken},
        )
        self._process.start()

    @property
    def is_running(self) -> bool:
        return self._process.is_alive()

    def standard_error(self) -> str:
        """Return what it has written so far."""
        return self._streams[1].read_text() if self._streams[1].exists() else ""

    def send_signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def end(self, timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for the end; after the time kill the command and raise `subprocess.TimeoutExpired`."""
        self._process.join(timeout_seconds)
        if self._process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self._command, timeout_seconds)
        return self._completed()

    def kill(self) -> subprocess.CompletedProcess[str]:
        """End the command with SIGKILL, unless it has ended."""
        self._process.kill()
        self._process.join()
        return self._completed()

    def _completed(self) -> subprocess.CompletedProcess[str]:
        code = self._process.exitcode
        assert code is not None
        self._process.close()
        # a command that was killed at once has opened nothing
        stdout, stderr = (stream.read_text() if stream.exists() else "" for stream in self._streams)
        self._outputs.cleanup()
        return subprocess.CompletedProcess(self._command, code, stdout, stderr)


class PreparedServer:
    """A running server in a session of its own; a part of `subprocess.Popen`. Both outputs are appended to `log`."""

    def __init__(self, *command: str, folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self.args = list(command)
        self._process = _context(environment.get("PYTHONPATH", "")).Process(
            target=_become,
            args=(self.args, str(folder), dict(environment), [str(log), str(log)]),
            kwargs={"own_session": True},
        )
        self._process.start()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative for a signal; `None` while the server runs."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run_prepared(
    program: str,
    arguments: tuple[str, ...],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
    broken: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run the command with empty standard input; raises `subprocess.TimeoutExpired` like `subprocess.run`.

    `broken` names a function, such as "json.loads", that raises `RuntimeError(BROKEN_TEXT)` in this process.
    """
    command = PreparedCommand(program, arguments, folder=folder, environment=environment, broken=broken)
    return command.end(timeout_seconds)


def forking() -> ForkServerContext:
    """Return what forks processes that have everything imported, for a function of the tests to run in."""
    return _context(ABSENT_PACKAGES)


@cache
def _context(python_path: str) -> ForkServerContext:
    """Start the process that forks, with the module search path of the installed command."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_PRELOADED))
    with mock.patch.dict(os.environ, {"PYTHONPATH": python_path}):
        forkserver.ensure_running()
    return context


def _become(
    command: list[str],
    folder: str,
    environment: dict[str, str],
    outputs: list[str],
    *,
    broken: str | None = None,
    own_session: bool = False,
) -> None:
    if own_session:
        os.setsid()
    fork_workers()
    for descriptor, path in enumerate([os.devnull, *outputs]):
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  a descriptor, for as long as the process lives
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # chosen anew from TMPDIR
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    sys.argv = command
    if broken is not None:
        module, _, name = broken.rpartition(".")
        setattr(import_module(module), name, _fail)
    from app.cli import main  # noqa: PLC0415  the tests' own process must not be hardened

    main()


def _fail(*_: object, **__: object) -> Never:
    raise RuntimeError(BROKEN_TEXT)
