"""Worker processes, and the environment that they receive over a pipe."""

from __future__ import annotations

import os
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.config.settings import METRICS_FOLDER
from app.server.hardening import protect_process

# --- Which variables a program of ours is started with, and which it gets over a pipe.
# What a program is started with stands in `/proc/PID/environ`, and Linux lets every process of the same user read that
# until the program has asked for protection, which takes it a second of imports.

# what the interpreter, the loader and the C library read before there is a pipe; everything else may be a secret
_OPEN: Final = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", METRICS_FOLDER})
_OPEN_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "PYTHON")


def hidden_variables() -> dict[str, str]:
    """Return this process's variables that may be secret."""
    return {name: value for name, value in os.environ.items() if not _is_open(name)}


def _is_open(name: str) -> bool:
    return name in _OPEN or name.startswith(_OPEN_PREFIXES)


# --- How workers get the environment: over the pipe that they are started with, never as the environment of a program.
# Python's own resource tracker, which is started beside the workers, never asks for protection.


class _Supervised(uvicorn.Config):
    """A configuration that gives each worker the variables that its parent has put away."""

    hidden: dict[str, str]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Protect the worker before its process holds a secret: this is what unpickles the first of them."""
        protect_process()
        self.__dict__.update(state)
        os.environ.update(self.hidden)


def supervise(app: str, **options: Any) -> None:  # noqa: ANN401  uvicorn's
    """Run workers as `uvicorn.run` does, and take everything that may be secret out of this process's environment."""
    config = _Supervised(app, **options)
    config.hidden = hidden_variables()
    for name in config.hidden:
        del os.environ[name]
    Multiprocess(config, sockets=[config.bind_socket()]).run()
