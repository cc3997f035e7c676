"""PostgREST, the HTTP API in front of Supabase's tables, as a process."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.stack.install import POSTGREST
from tests.support.stack.loopback import LOOPBACK, free_port
from tests.support.stack.reaper import Reaper

_START_SECONDS = 120.0
_STOP_SECONDS = 30.0


class Postgrest:
    """One PostgREST over one database, which can be stopped and started again on the same port."""

    def __init__(self, *, database_uri: str, jwt_secret: str, pool_size: int, log: Path, reaper: Reaper) -> None:
        """`database_uri` is that of the role `authenticator`."""
        if not POSTGREST.exists():
            raise RuntimeError("PostgREST is not installed: run `make test`")
        self.port = free_port()
        self._admin_port = free_port()
        self._log = log
        self._reaper = reaper
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "PGRST_DB_URI": database_uri,
            "PGRST_DB_SCHEMAS": "public",
            "PGRST_DB_ANON_ROLE": "anon",
            "PGRST_DB_MAX_ROWS": "1000",
            "PGRST_DB_POOL": str(pool_size),
            "PGRST_JWT_SECRET": jwt_secret,
            "PGRST_SERVER_HOST": LOOPBACK,
            "PGRST_SERVER_PORT": str(self.port),
            "PGRST_ADMIN_SERVER_PORT": str(self._admin_port),
            "PGRST_LOG_LEVEL": "error",
        }

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None, "PostgREST does not run"
        return self._process.pid

    def start(self) -> None:
        """Return once it answers; raise `RuntimeError` with its log if it does not start."""
        if self._process is not None:
            return
        # not this process's outputs: a program that reads those to the end would wait for PostgREST
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [str(POSTGREST)],
                # PATH alone, because the environment may hold PGRST_ or PG settings
                env={"PATH": os.environ.get("PATH", "")} | self._settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must not reach it: this process stops it
                start_new_session=True,
            )
        self._reaper.watch(self._process.pid, signal.SIGTERM)
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise RuntimeError(f"PostgREST does not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Return once the process has ended."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=_STOP_SECONDS)
        self._reaper.forget(process.pid)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Serve within the block."""
        try:
            self.start()
            yield
        finally:
            self.stop()

    def _is_ready(self) -> bool:
        # the schema cache is loaded, not only the port open
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self._admin_port}/ready", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False
