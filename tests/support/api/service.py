"""The real service as a process, with a key for each kind of caller."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key, render_key_list
from tests.support.process.home import AS_USERS_HAVE_IT
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.plain_http import PLAIN_HTTP

START_SECONDS = 30
_LINE_SECONDS = 5
COMMAND = Path(sys.executable).with_name("token-vault")

_EVERY = frozenset(Scope)
_CALLERS: dict[str, dict[str, Any]] = {
    "full": {"scopes": _EVERY},
    "canvas": {"scopes": _EVERY, "providers": frozenset({"canvas"})},
    "expired": {"scopes": _EVERY, "expires_at": datetime.now(UTC) - timedelta(seconds=1)},
    **{scope.name.lower(): {"scopes": frozenset({scope})} for scope in Scope},
}


@dataclass(frozen=True, slots=True)
class Service:
    """A running vault. `keys` are service keys by what they may do; `log` is everything that it printed."""

    url: str
    keys: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes]

    def client(self, key: str = "full") -> httpx.Client:
        """Return a client that presents this key."""
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, verify=PLAIN_HTTP)

    @contextmanager
    def logged(self) -> Iterator[list[dict[str, Any]]]:
        """Collect the lines that are logged inside of the block."""
        before = len(self.lines())
        lines: list[dict[str, Any]] = []
        yield lines
        lines += [json.loads(line) for line in self.lines()[before:-1]]

    def lines(self) -> list[str]:
        """Wait until every line so far has reached the log, and return them all, with one more of our own.

        Lines come out moments after they are logged, and in order: where a request's own line is, those before it are.
        """
        mark = uuid4().hex
        httpx.get(f"{self.url}/healthz", headers={"X-Request-ID": mark}, trust_env=False, timeout=20, verify=PLAIN_HTTP)
        deadline = time.monotonic() + _LINE_SECONDS
        while mark not in (written := self.log.read_text()):
            if time.monotonic() > deadline:
                raise RuntimeError(f"a request's line did not come:\n{written}")
            time.sleep(0.002)
        lines = written.splitlines()
        return lines[: next(place for place, line in enumerate(lines, 1) if mark in line)]


@contextmanager
def running_service(
    folder: Path, environment: dict[str, str], *arguments: str, within: tuple[str, ...] = ()
) -> Iterator[Service]:
    """Start `token-vault serve` in `folder`, and stop it afterwards; `within` is a command that becomes it."""
    keys = {name: generate_key() for name in _CALLERS}
    entries = [ServiceKey(service=name, sha256=hash_key(keys[name]), **_CALLERS[name]) for name in keys]
    key_file = folder / "service-keys.json"
    key_file.write_text(render_key_list(entries))
    port = free_port()
    log = folder / "log"
    settings = {
        "TOKEN_ENCRYPTION_KEY": MASTER_KEY,
        "SERVICE_KEYS_FILE": str(key_file),
        "PORT": str(port),
        "LOG_LEVEL": "DEBUG",
        "METRICS_CENSUS_SECONDS": "0",  # it would meet what a test does to the store
        **environment,
    }
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*within, COMMAND, "serve", *arguments],
            cwd=folder,
            env=inherited | AS_USERS_HAVE_IT | settings,
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_answers(url, process, log)
        yield Service(url, keys, log, process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a loopback port that nothing listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False, verify=PLAIN_HTTP).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")
