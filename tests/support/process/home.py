"""The folder and the settings of one vault, and commands that run in it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.process.prepared import ABSENT_PACKAGES, run_prepared
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.loopback import free_port

COMMAND: Final = str(Path(sys.executable).with_name("token-vault"))
COMMAND_SECONDS: Final = 240  # a bound for a busy machine, on which old tokens are derived at low priority
# The program under test sees the packages that users have: the test environment would add `rich`.
AS_USERS_HAVE_IT: Final = {"PYTHONPATH": ABSENT_PACKAGES}
ALL_SCOPES: Final = (
    "tokens:admin",
    "tokens:delete",
    "tokens:read",
    "tokens:reveal",
    "tokens:reveal_refresh",
    "tokens:write",
)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """Return these settings and the few variables that every program needs."""
    kept = ("PATH", "LANG", "LC_ALL", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | AS_USERS_HAVE_IT | dict(settings)


def at_its_start(code: str, folder: Path) -> dict[str, str]:
    """Return the settings under which a program runs this code first, from a `sitecustomize.py` in the folder."""
    (folder / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": f"{folder}:{AS_USERS_HAVE_IT['PYTHONPATH']}"}


def token_vault(
    *arguments: str, folder: Path, settings: Mapping[str, str] | None = None, broken: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run `token-vault` in this folder to its end; see `run_prepared`."""
    return run_prepared(
        COMMAND,
        arguments,
        folder=folder,
        environment=environment(settings or {}),
        timeout_seconds=COMMAND_SECONDS,
        broken=broken,
    )


def run(
    *command: str, folder: Path, settings: Mapping[str, str] | None = None, text: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a new process in this folder to its end, with `text` as standard input."""
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(settings or {}),
        input=text,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )


def require_refusal(done: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """Require this exit code, nothing on standard output, and one line of error that contains each of the words."""
    assert (done.returncode, done.stdout) == (exit_code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert [word for word in words if word not in line] == []


@dataclass(frozen=True, slots=True)
class Home:
    """The folder and the settings of one vault; `service_key` has every scope."""

    folder: Path
    service_key: str
    settings: Mapping[str, str]


def new_home(folder: Path, **settings: str) -> Home:
    """Return a home on SQLite with a new service key and a free port; `settings` add to it or replace parts."""
    service_key = f"ptv_{secrets.token_urlsafe(32)}"
    entry = {
        "service": "tests",
        "sha256": hashlib.sha256(service_key.encode()).hexdigest(),
        "scopes": list(ALL_SCOPES),
    }
    return Home(
        folder=folder,
        service_key=service_key,
        settings={
            "TOKEN_ENCRYPTION_KEY": MASTER_KEY,
            "SERVICE_KEYS": json.dumps([entry]),
            "PORT": str(free_port()),
            **settings,
        },
    )


def new_master_key(size: int = 32) -> str:
    return base64.b64encode(secrets.token_bytes(size)).decode()


def initialised_home(folder: Path) -> Home:
    """Return the home that `token-vault init` makes in this folder."""
    settings = {"PORT": str(free_port())}
    printed = token_vault("init", folder=folder, settings=settings).stdout
    service_key = next(line.strip() for line in printed.splitlines() if line.strip().startswith("ptv_"))
    return Home(folder=folder, service_key=service_key, settings=settings)


def files_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return the content and the modification time of each file below the folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
