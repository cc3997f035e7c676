"""`token-vault` run to its end in a process that begins with the libraries imported.

Three quarters of a short command are imports of others' libraries, and the tests run hundreds. So one process imports
these, and nothing of the vault's own, and becomes each command by forking: what such a command reads, writes, prints
and ends with is its own. How the installed program starts, and is stopped and killed, is shown with that itself.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final
from unittest import mock

_IMPORTED: Final = (
    "__main__",  # else each command would import pytest's
    "apsw",
    "asyncio",
    "boto3",
    "click",
    "cryptography.hazmat.primitives.ciphers.aead",
    "cryptography.x509",
    "httpx_aiohttp",
    "pydantic_settings",
    "structlog",
    "supabase",
    "uvicorn",
)


def run_prepared(
    program: str, arguments: tuple[str, ...], *, folder: Path, environment: Mapping[str, str], timeout_seconds: float
) -> subprocess.CompletedProcess[str]:
    """Run the command with nothing to read; raises `subprocess.TimeoutExpired` like `subprocess.run`."""
    command = [program, *arguments]
    with TemporaryDirectory() as outputs:
        streams = [Path(outputs, name) for name in ("stdout", "stderr")]
        process = _context(environment.get("PYTHONPATH", "")).Process(
            target=_become, args=(command, str(folder), dict(environment), [str(stream) for stream in streams])
        )
        process.start()
        process.join(timeout_seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(command, timeout_seconds)
        code = process.exitcode
        process.close()
        stdout, stderr = (stream.read_text() for stream in streams)
    return subprocess.CompletedProcess(command, code, stdout, stderr)


@cache
def _context(python_path: str) -> ForkServerContext:
    """Start what forks, with this path, as the command itself would have it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with mock.patch.dict(os.environ, {"PYTHONPATH": python_path}):
        forkserver.ensure_running()
    return context


def _become(command: list[str], folder: str, environment: dict[str, str], outputs: list[str]) -> None:
    for descriptor, path in enumerate(outputs, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
    sys.argv = command
    from app.cli import main  # noqa: PLC0415  only here is the vault's own code imported

    main()
