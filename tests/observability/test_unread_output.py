"""A service whose standard output is a pipe that nobody reads: a log shipper that stands still."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import time
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

START_SECONDS = 120
STOP_SECONDS = 20
READ_SECONDS = 40
USER = str(uuid4())
CANVAS = f"/v1/users/{USER}/tokens/canvas"
# each item leaves a line of its own, for none of these tokens is there
BATCH = {"tokens": [{"user_id": USER, "provider": "canvas"}] * 100}


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
        with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=4, verify=PLAIN_HTTP) as client:
            eventually(lambda: _answers(client), within_seconds=START_SECONDS)
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
    """Reads lines of the pipe, as many as it is told to."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.lines: list[dict[str, Any]] = []
        self._pipe = process.stdout

    def until(self, **members: str) -> dict[str, Any]:
        """Read to a line that has these members."""
        deadline = time.monotonic() + READ_SECONDS
        while time.monotonic() < deadline:
            if not select.select([self._pipe], [], [], READ_SECONDS)[0]:
                break
            line: dict[str, Any] = json.loads(self._pipe.readline())
            self.lines.append(line)
            if members.items() <= line.items():
                return line
        raise AssertionError(members)


def test_a_log_that_nobody_reads_holds_no_call_up_and_says_afterwards_what_is_missing(
    tmp_path: Path, stack_reaper: Reaper
) -> None:
    home = new_home(tmp_path, AUDIT_LOG=str(tmp_path / "audit" / "audit.jsonl"), AUDIT_KEY=MASTER_KEY)
    with _unread(home, stack_reaper) as (client, process):
        for number in range(1_000):
            if number % 10:
                assert client.get(CANVAS).status_code == 404
            else:  # all of them together more lines than may wait
                assert client.post("/v1/tokens/batch-get", json=BATCH).status_code == 200
        assert client.get("/healthz").status_code == 200
        reader = _Reader(process)
        resumed = reader.until(event="log_resumed")
        kept = sum(line["event"] in {"request", "token_operation"} for line in reader.lines)
        assert kept + resumed["log_lines_dropped"] == 900 + 100 * 101, "each line is there or counted"
        assert client.get(CANVAS, headers={"X-Request-ID": "afterwards"}).status_code == 404
        assert reader.until(event="request")["request_id"] == "afterwards"
        for _ in range(3):
            assert client.post("/v1/tokens/batch-get", json=BATCH).status_code == 200
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0, "and it stops when it is told to"


def test_two_workers_behind_one_pipe_that_nobody_reads_serve_on(tmp_path: Path, stack_reaper: Reaper) -> None:
    home, path = new_home(tmp_path), token_path(uuid4())
    with _unread(home, stack_reaper, workers=2) as (client, process):
        reader = _Reader(process)
        for _ in range(2):
            reader.until(event="Application startup complete.")
        assert client.put(path, json={"access_token": "kept"}).status_code == 201
        with one_wire_to_each_worker(Server(home, process, Path(os.devnull))) as wires:
            assert len(wires) == 2
            for _ in range(120):  # more lines than may wait, of each
                for wire in wires:
                    wire.ask("POST", "/v1/tokens/batch-get", BATCH)
                assert [wire.hear().status for wire in wires] == [200, 200]
            assert [wire.call("GET", "/healthz").status for wire in wires] == [200, 200]
            assert [wire.call("GET", path).body["access_token"] for wire in wires] == ["kept", "kept"]
        dropped = [reader.until(event="log_resumed")["log_lines_dropped"] for _ in range(2)]
        assert min(dropped) > 0, "both had more to say than the pipe took"
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0


def test_with_the_audit_trail_in_the_same_pipe_only_what_it_must_keep_is_refused(
    tmp_path: Path, stack_reaper: Reaper
) -> None:
    home = new_home(tmp_path, AUDIT_LOG="-", AUDIT_KEY=MASTER_KEY)
    with _unread(home, stack_reaper) as (client, process):
        for _ in range(1_000):
            began = time.monotonic()
            answer = client.get(CANVAS)
            if answer.status_code != 404:
                break
        problem(answer, 503, "audit_unavailable")
        assert time.monotonic() - began < 2.5
        with httpx.Client(base_url=client.base_url, trust_env=False, timeout=4, verify=PLAIN_HTTP) as stranger:
            for _ in range(50):
                problem(client.get(CANVAS), 503, "audit_unavailable")
                problem(stranger.get(CANVAS), 401, "unauthenticated")
                assert client.get("/healthz").status_code == 200
        reader = _Reader(process)
        reader.until(event="audit_resumed")
        assert client.get(CANVAS).status_code == 404
        assert "audit_failed" in {line.get("event") for line in reader.lines}
