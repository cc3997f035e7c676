"""Worker processes that receive the environment over a pipe.

`/proc/PID/environ` shows the variables that a program was started with. On Linux every process of the same user can
read it until the program forbids that, which it can do only after about a second of imports; Python's resource
tracker, which is started beside the workers, never does. So variables that may be secret never start a program.
"""

from __future__ import annotations

import os
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.config.settings import METRICS_FOLDER
from app.server.hardening import protect_process
from app.server.listeners import bind

# read by the interpreter, the loader and the C library before there is a pipe; every other variable may be secret
_OPEN: Final = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", METRICS_FOLDER})
_OPEN_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "PYTHON")


class _WorkerConfig(uvicorn.Config):
    """uvicorn's configuration, pickled to each worker together with the variables that may be secret."""

    hidden: dict[str, str]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Protect the worker before it holds a secret: unpickling this is the first thing that it does."""
        protect_process()
        self.__dict__.update(state)
        os.environ.update(self.hidden)


def supervise(app: str, *, metrics_port: int | None, **options: Any) -> None:  # noqa: ANN401  uvicorn's
    """Run workers as `uvicorn.run` does; remove every variable that may be secret from this process's environment."""
    config = _WorkerConfig(app, **options)
    config.hidden = _hidden_variables()
    for name in config.hidden:
        del os.environ[name]
    Multiprocess(config, sockets=bind(config, metrics_port)).run()


def _hidden_variables() -> dict[str, str]:
    """Return this process's variables that may be secret."""
    return {name: value for name, value in os.environ.items() if not _is_open(name)}


def _is_open(name: str) -> bool:
    return name in _OPEN or name.startswith(_OPEN_PREFIXES)
