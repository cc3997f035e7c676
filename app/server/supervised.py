"""How workers get the environment: over the pipe that they are started with, never as the environment of a program.

Python's own resource tracker, which is started beside the workers, never asks for protection.
"""

from __future__ import annotations

import os
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from app.server.environment import hidden_variables
from app.server.protection import protect_process


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
