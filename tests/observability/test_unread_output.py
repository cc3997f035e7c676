"""A service whose standard output is a pipe without a reader, as with a log shipper that stands still."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.support.api.fixtures import problem
from tests.support.process.home import COMMAND, Home, environment, new_home
from tests.support.process.server import Server
from tests.support.process.wire import token_path
from tests.support.process.workers import one_wire_to_each_worker
from tests.support.security.keys import MASTER_KEY
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stack.reaper import Reaper
from tests.support.waiting import eventually

BOUND_SECONDS = 60  # shows a hang
USER = str(uuid4())
CANVAS = f"/v1/users/{USER}/tokens/canvas"
# each item leaves a log line, because none of these tokens exists
BATCH = {"tokens": [{"user_id": USER, "provider": "canvas", "service_type": f"s{number}"} for number in range(100)]}
BATCHES = 120  # more lines than the writer of a worker keeps
LINES_OF_REQUESTS = {"request", "token_operation"}


@contextmanager
def _unread(home: Home, reaper: Reaper, *, workers: int = 1) -> Iterator[tuple[httpx.Client, subprocess.Popen[bytes]]]:
    process = subprocess.Popen(
        [COMMAND, "serve", "--workers", str(workers)],
        cwd=home.folder,
        env=environment(home.settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        bufsize=0,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    reaper.watch(process.pid, signal.SIGTERM)
    headers = {"Authorization": f"Bearer {home.service_key}"}
    url = f"http://127.0.0.1:{home.settings['PORT']}"
    try:
        with httpx.Client(
            base_url=url, headers=headers, trust_env=False, timeout=BOUND_SECONDS, verify=PLAIN_HTTP
        ) as client:
            eventually(lambda: _answers(client), within_seconds=BOUND_SECONDS)
            yield client, process
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)  # the workers too
        process.wait()
        reaper.forget(process.pid)
        if process.stdout is not None:
            process.stdout.close()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


class _Reader:
    """Reads one line of the pipe at a time."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.lines: list[dict[str, Any]] = []
        self._pipe = process.stdout

    def next(self) -> dict[str, Any]:
        assert select.select([self._pipe], [], [], BOUND_SECONDS)[0], "no more lines"
        self.lines.append(json.loads(self._pipe.readline()))
        return self.lines[-1]

    def until(self, **members: str) -> None:
        """Read up to a line with these members."""
        while not members.items() <= self.next().items():
            pass


def test_an_unread_log_blocks_no_worker_and_missing_lines_are_counted(tmp_path: Path, stack_reaper: Reaper) -> None:
    home, path = new_home(tmp_path), token_path(uuid4())
    with _unread(home, stack_reaper, workers=2) as (client, process):
        reader = _Reader(process)
        for _ in range(2):
            reader.until(event="Application startup complete.")
        assert client.put(path, json={"access_token": "kept"}).status_code == 201
        with one_wire_to_each_worker(Server(home, process, Path(os.devnull))) as wires:
            for _ in range(BATCHES):
                for wire in wires:
                    wire.ask("POST", "/v1/tokens/batch-get", BATCH)
                assert [wire.receive().status for wire in wires] == [200, 200]
            assert [wire.call("GET", path).body["access_token"] for wire in wires] == ["kept", "kept"]
        logged, seen = 1 + 2 * (BATCHES * (1 + len(BATCH["tokens"])) + 1), 0
        while seen < logged:
            line = reader.next()
            seen += line.get("log_lines_dropped", line["event"] in LINES_OF_REQUESTS)
        assert seen == logged, "each line is there or counted"
        assert [line["event"] for line in reader.lines].count("log_resumed") >= 2, "both workers have dropped some"
        assert client.get(CANVAS, headers={"X-Request-ID": "afterwards"}).status_code == 404
        reader.until(event="request", request_id="afterwards")
        for _ in range(3):
            assert client.post("/v1/tokens/batch-get", json=BATCH).status_code == 200
        process.terminate()
        assert process.wait(BOUND_SECONDS) == 0, "a full pipe does not keep it from stopping"


def test_an_audit_trail_in_an_unread_pipe_refuses_only_audited_calls(tmp_path: Path, stack_reaper: Reaper) -> None:
    home = new_home(tmp_path, AUDIT_LOG="-", AUDIT_KEY=MASTER_KEY)
    with _unread(home, stack_reaper) as (client, process):
        answer = client.get(CANVAS)
        while answer.status_code == 404:  # until the pipe is full
            answer = client.get(CANVAS)
        problem(answer, 503, "audit_unavailable")
        stranger = {"Authorization": ""}
        for _ in range(50):
            problem(client.get(CANVAS), 503, "audit_unavailable")
            problem(client.get(CANVAS, headers=stranger), 401, "unauthenticated")
            assert client.get("/healthz").status_code == 200
        reader = _Reader(process)
        reader.until(event="audit_resumed")
        assert client.get(CANVAS).status_code == 404
        assert "audit_failed" in {line.get("event") for line in reader.lines}
