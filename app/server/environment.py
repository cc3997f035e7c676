"""Which variables a program of ours is started with, and which it gets over a pipe.

What a program is started with stands in `/proc/PID/environ`, and Linux lets every process of the same user read that
until the program has asked for protection, which takes it a second of imports.
"""

from __future__ import annotations

import os
from typing import Final

from app.config.settings import METRICS_FOLDER

# what the interpreter, the loader and the C library read before there is a pipe; everything else may be a secret
_OPEN: Final = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", METRICS_FOLDER})
_OPEN_PREFIXES: Final = ("LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_", "PYTHON")


def open_variables() -> dict[str, str]:
    """Return this process's variables that hold no secret."""
    return {name: value for name, value in os.environ.items() if _is_open(name)}


def hidden_variables() -> dict[str, str]:
    """Return this process's other variables."""
    return {name: value for name, value in os.environ.items() if not _is_open(name)}


def _is_open(name: str) -> bool:
    return name in _OPEN or name.startswith(_OPEN_PREFIXES)
