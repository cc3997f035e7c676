"""Worker processes that protect themselves before they receive the environment.

`/proc/PID/environ` shows the variables that a program was started with. On Linux every process of the same user can
read it, the memory and the pipes of a program until the program forbids that, which it can do only after about a second
of imports; Python's resource tracker, which is started beside the workers, never does. So variables that may be secret
never start a program: a worker asks for them over a socket once it has protected itself.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.context import get_spawning_popen
from threading import Thread
from typing import Any, Final

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from app.config.settings import METRICS_FOLDER
from app.server.hardening import UnprotectedProcessError, protect_process
from app.server.listeners import bind

# read by the interpreter, the loader and the C library before there is a pipe; every other variable may be secret
_OPEN: Final = frozenset(
    {"HOME", "LANG", "LANGUAGE", "PATH", "PYDANTIC_DISABLE_PLUGINS", "TMPDIR", "TZ", METRICS_FOLDER}
)
_SECRETS: Final = "_secrets"
_START_SECONDS: Final = 300.0  # a bound for a busy machine; a worker asks after about a second
_PAUSE_SECONDS: Final = 0.01
_OPEN_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "PYTHON")


class _WorkerConfig(uvicorn.Config):
    """uvicorn's configuration, pickled to each worker without the variables that may be secret."""

    hidden: dict[str, str]

    def __getstate__(self) -> dict[str, Any]:
        """Return what one worker gets: everything but the secrets, and a socket to ask for them."""
        ours, theirs = Pipe()  # a socket, which unlike a pipe cannot be opened through /proc
        worker = get_spawning_popen()
        Thread(target=_answer, args=(ours, theirs, worker, self.hidden), name="worker-secrets", daemon=True).start()
        return {**self.__dict__, "hidden": {}, _SECRETS: theirs}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Protect the worker, then ask for the secrets: unpickling this is the first thing that it does.

        A worker that cannot be protected asks for none, and stops the service by its exit code.
        """
        try:
            protect_process()
        except UnprotectedProcessError as error:
            sys.stderr.write(f"Error: {error}\n")
            sys.exit(STARTUP_FAILURE)
        with state.pop(_SECRETS) as secrets:
            secrets.send_bytes(b"protected")
            os.environ.update(secrets.recv())
        self.__dict__.update(state)


def _answer(ours: Connection, theirs: Connection, worker: Any, hidden: dict[str, str]) -> None:  # noqa: ANN401  a private class
    """Send the secrets to a worker that says that it is protected; end if it ends before."""
    until = time.monotonic() + _START_SECONDS
    with ours:
        with theirs:  # until the worker has inherited it: then it is closed when the worker ends
            while getattr(worker, "pid", None) is None and time.monotonic() < until:
                time.sleep(_PAUSE_SECONDS)
        with suppress(EOFError, OSError):
            if ours.poll(until - time.monotonic()):
                ours.recv_bytes()
                ours.send(hidden)


def supervise(app: str, *, metrics_port: int | None, **options: Any) -> None:  # noqa: ANN401  uvicorn's
    """Run workers as `uvicorn.run` does; remove every variable that may be secret from this process's environment."""
    config = _WorkerConfig(app, **options)
    config.hidden = _hidden_variables()
    for name in config.hidden:
        del os.environ[name]
    supervisor = Multiprocess(config, sockets=bind(config, metrics_port))
    supervisor.run()
    if any(worker.exitcode == STARTUP_FAILURE for worker in supervisor.processes):
        sys.exit(STARTUP_FAILURE)


def _hidden_variables() -> dict[str, str]:
    """Return this process's variables that may be secret."""
    return {name: value for name, value in os.environ.items() if not _is_open(name)}


def _is_open(name: str) -> bool:
    return name in _OPEN or name.startswith(_OPEN_PREFIXES)
