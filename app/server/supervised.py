"""How workers get the environment: over the pipe that they are started with, never as the environment of a program.

What a program is started with stands in `/proc/PID/environ`, and Linux lets every process of the same user read that
until the program has asked for protection, which takes a worker a second of imports. Python's own resource tracker,
which is started beside the workers, never asks.
"""

from __future__ import annotations

import os
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.config.settings import METRICS_FOLDER
from app.server.process import forbid_core_dumps, keep_memory_out_of_swap

# what the interpreter, the loader and the C library read before there is a pipe; everything else may be a secret
_OPEN: Final = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", METRICS_FOLDER})
_OPEN_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "PYTHON")


class _Supervised(uvicorn.Config):
    """A configuration that gives each worker the variables that its parent has put away."""

    hidden: dict[str, str]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Protect the worker before its process holds a secret: this is what unpickles the first of them."""
        forbid_core_dumps()
        keep_memory_out_of_swap()
        self.__dict__.update(state)
        os.environ.update(self.hidden)


def supervise(app: str, **options: Any) -> None:  # noqa: ANN401  uvicorn's
    """Run workers as `uvicorn.run` does, and take everything that may be secret out of this process's environment."""
    config = _Supervised(app, **options)
    config.hidden = _put_away()
    Multiprocess(config, sockets=[config.bind_socket()]).run()


def _put_away() -> dict[str, str]:
    names = [name for name in os.environ if name not in _OPEN and not name.startswith(_OPEN_PREFIXES)]
    return {name: os.environ.pop(name) for name in names}
