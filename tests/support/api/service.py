"""A vault as a process, with one service key for each kind of caller."""

from __future__ import annotations

import json
import os
import subprocess
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
from tests.support.process.home import AS_USERS_HAVE_IT, COMMAND
from tests.support.process.prepared import PreparedServer
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.loopback import PLAIN_HTTP, free_port
from tests.support.waiting import eventually

START_SECONDS = 120

_EVERY = frozenset(Scope)
_CALLERS: dict[str, dict[str, Any]] = {
    "full": {"scopes": _EVERY},
    "canvas": {"scopes": _EVERY, "providers": frozenset({"canvas"})},
    "on_behalf_of": {"scopes": _EVERY, "on_behalf_of": "required"},
    "expired": {"scopes": _EVERY, "expires_at": datetime.now(UTC) - timedelta(seconds=1)},
    **{scope.name.lower(): {"scopes": frozenset({scope})} for scope in Scope},
}


@dataclass(frozen=True, slots=True)
class Service:
    """A running vault. `keys` are service keys by kind of caller; `log` is the file of its output."""

    url: str
    keys: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | PreparedServer

    def client(self, key: str = "full") -> httpx.Client:
        """Return a client with this key."""
        headers = {"Authorization": f"Bearer {self.keys[key]}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, verify=PLAIN_HTTP)

    @contextmanager
    def logged(self) -> Iterator[list[dict[str, Any]]]:
        """Collect the log lines of the block, available after it."""
        _, start = self._written(0)
        lines: list[dict[str, Any]] = []
        yield lines
        written, _ = self._written(start)
        lines += [json.loads(line) for line in written[:-1]]

    def lines(self) -> list[str]:
        """Return all lines logged so far, and that of a probe."""
        return self._written(0)[0]

    def _written(self, start: int) -> tuple[list[str], int]:
        """Return the lines from this offset to that of a probe made now, and the offset after them.

        Lines are written in order and moments after they are logged, so those before the probe's are complete.
        """
        mark = uuid4().hex.encode()
        headers = {"X-Request-ID": mark.decode()}
        httpx.get(f"{self.url}/healthz", headers=headers, trust_env=False, timeout=60, verify=PLAIN_HTTP)
        with self.log.open("rb") as file:
            file.seek(start)
            written = b""

            def is_complete() -> bool:
                nonlocal written
                written += file.read()
                return b"\n" in written[written.find(mark) :] if mark in written else False

            eventually(is_complete)
        end = written.index(b"\n", written.index(mark)) + 1
        return written[:end].decode().splitlines(), start + end


@contextmanager
def running_service(
    folder: Path, environment: dict[str, str], *arguments: str, within: tuple[str, ...] = ()
) -> Iterator[Service]:
    """Run `token-vault serve` in `folder` during the block; `within` is a command that executes it.

    Without it the server is forked with everything imported.
    """
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
        "METRICS_CENSUS_SECONDS": "0",  # a count at any moment would meet the faults of a test
        **environment,
    }
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    command = [*within, COMMAND, "serve", *arguments]
    variables = inherited | AS_USERS_HAVE_IT | settings
    process: subprocess.Popen[bytes] | PreparedServer
    if within:
        with log.open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, env=variables, stdout=output, stderr=output)
    else:
        log.write_bytes(b"")
        process = PreparedServer(*command, folder=folder, environment=variables, log=log)
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


def _wait_until_it_answers(url: str, process: subprocess.Popen[bytes] | PreparedServer, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/healthz", trust_env=False, verify=PLAIN_HTTP).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise RuntimeError(f"the service did not start:\n{log.read_text()}")
