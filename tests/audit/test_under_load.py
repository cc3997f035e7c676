"""What was answered is in the record, whatever happens to the service."""

from __future__ import annotations

import os
import resource
import threading
import time
from contextlib import closing, suppress
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from uuid import uuid4

from tests.support.audit.trails import KEY_TEXT, files, members, verified
from tests.support.process.home import Home, new_home, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Wire, token_path

CLIENTS = 8
SECRET = "canary-secret"
BOUND_SECONDS = 2.5


class RevealingClient:
    """Reveals from a thread of its own, and remembers the request ids that were answered with 200."""

    def __init__(self, server: Server, user_id: object, reveals: int | None = None) -> None:
        self.answered: list[str] = []
        self.refused: list[int] = []
        self._wire = Wire(server)
        self._path = token_path(user_id)
        self._reveals = reveals
        self._thread = threading.Thread(target=self._run, name="revealing-client")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with closing(self._wire):
            try:
                while self._reveals is None or number < self._reveals:
                    number += 1
                    request_id = uuid4().hex
                    answer = self._wire.call("GET", self._path, X_Request_ID=request_id)
                    if answer.status == 200:
                        self.answered.append(request_id)
                    else:
                        self.refused.append(answer.status)
            except (OSError, HTTPException):
                return  # the server was killed


def _home(folder: Path, **settings: str) -> Home:
    return new_home(folder, AUDIT_LOG="audit/audit.jsonl", AUDIT_KEY=KEY_TEXT, **settings)


def _stored(server: Server) -> str:
    user_id = str(uuid4())
    with closing(Wire(server)) as wire:
        assert wire.call("PUT", token_path(user_id), {"access_token": SECRET}).status == 201
    return user_id


def _revealed(home: Home) -> list[str]:
    """Return the request id of each successful reveal in the record."""
    events = members(files(home.folder / "audit"))
    return [event["request_id"] for event in events if (event["operation"], event["outcome"]) == ("reveal", "success")]


def test_four_workers_record_exactly_what_they_have_answered_while_their_files_fill_up(
    tmp_path: Path,
    serve: Serve,
) -> None:
    home = _home(tmp_path, AUDIT_MAX_BYTES="20000")
    with serve(home, workers=4) as server:
        user_id = _stored(server)
        clients = [RevealingClient(server, user_id, reveals=100) for _ in range(CLIENTS)]
        for client in clients:
            client.join()
        server.stop()
    answered = [request_id for client in clients for request_id in client.answered]
    assert len(answered) == CLIENTS * 100
    assert sorted(_revealed(home)) == sorted(answered)
    report = verified(files(home.folder / "audit"))
    assert (report.findings, report.notes, report.chains) == ([], [], 4)  # no note: each chain has its end
    assert len(files(home.folder / "audit")) > 20


def test_no_answer_is_missing_from_the_record_after_kill_9_under_load(
    tmp_path: Path,
    serve: Serve,
) -> None:
    """The kernel outlives a kill, so this shows the order of record and answer, not that a disk has been reached."""
    home = _home(tmp_path)
    answered: list[str] = []
    for sync in ("always", "interval"):
        settings = {**home.settings, "AUDIT_SYNC": sync}
        with serve(replace(home, settings=settings), workers=2) as server:
            user_id = _stored(server)
            clients = [RevealingClient(server, user_id) for _ in range(CLIENTS)]
            while sum(len(client.answered) for client in clients) < 400:
                time.sleep(0.01)
            server.kill()
            for client in clients:
                client.join()
        answered += [request_id for client in clients for request_id in client.answered]
    recorded = _revealed(home)
    assert len(recorded) == len(set(recorded))
    assert set(answered) <= set(recorded)
    assert len(recorded) - len(answered) <= 2 * CLIENTS  # what was under way at each kill
    with serve(home) as server:
        server.stop()
    report = verified(files(home.folder / "audit"))
    assert report.findings == []
    assert [note.problem for note in report.notes if note.problem != "torn"] == ["interrupted"] * 4


def test_a_full_disk_refuses_every_secret_and_is_left_behind_without_a_restart(
    tmp_path: Path,
    serve: Serve,
) -> None:
    """The disk is a limit on file sizes that the audit file has reached and the database has not."""
    home = _home(tmp_path)
    with serve(home) as server, server.client() as client:
        user_id = _stored(server)
        path = token_path(user_id)
        while files(tmp_path / "audit")[0].stat().st_size < 200_000:
            client.post("/v1/tokens/batch-get", json={"tokens": [{"user_id": user_id, "provider": "canvas"}] * 100})
        size = files(tmp_path / "audit")[0].stat().st_size
        assert (tmp_path / "data" / "vault.db-wal").stat().st_size < size
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (size + 100, hard))
        refused = [client.get(path), client.put(path, json={"access_token": SECRET}), client.get(path)]
        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
            assert (answer.json()["retryable"], answer.headers["retry-after"]) == (True, "1")
            assert SECRET not in answer.text
        unknown = client.get(path, headers={"Authorization": "Bearer no-such-key"})
        assert unknown.status_code == 401  # who is refused anyway is told so
        time.sleep(1.1)  # readiness is remembered for a second
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["audit"]) == (503, "down")
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        deadline = time.monotonic() + 5
        while client.get(path).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        output = server.stop().output
    assert SECRET not in output
    assert '"reason":"EFBIG"' in output
    assert verified(files(tmp_path / "audit")).findings == []
    assert len(files(tmp_path / "audit")) == 1


def test_a_disk_that_hangs_holds_only_those_who_need_it_and_not_for_long(
    tmp_path: Path,
    serve: Serve,
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    home = new_home(tmp_path, AUDIT_LOG="fifo", AUDIT_KEY=KEY_TEXT)
    try:
        with serve(home) as server, server.client() as client:
            user_id = _stored(server)
            batch = {"tokens": [{"user_id": user_id, "provider": "canvas"}] * 100}
            waits = []
            codes: list[object] = []
            for _ in range(4):
                began = time.monotonic()
                answer = client.post("/v1/tokens/batch-get", json=batch, timeout=10)
                waits.append(time.monotonic() - began)
                codes += [item.get("problem", {}).get("code") for item in answer.json()["results"]]
                assert client.get("/healthz", timeout=1).status_code == 200
            assert max(waits) < BOUND_SECONDS
            assert min(waits[2:]) < 1  # at once, from the first that has waited
            assert codes[-100:] == ["audit_unavailable"] * 100
            while client.get(token_path(user_id)).status_code != 200:  # the reader reads again
                with suppress(BlockingIOError):
                    os.read(reader, 1 << 20)
            os.close(reader)
            reader = -1
            server.stop()
    finally:
        if reader >= 0:
            os.close(reader)


def test_the_rewrap_command_and_scripts_leave_chains_of_their_own(tmp_path: Path, serve: Serve) -> None:
    old = _home(tmp_path)
    with serve(old) as server:
        _stored(server)
        server.stop()
    settings = {
        **old.settings,
        "ENCRYPTION_KEY_VERSION": "2",
        "TOKEN_ENCRYPTION_KEY": KEY_TEXT,
        "TOKEN_ENCRYPTION_PREVIOUS_KEYS": f'{{"1": "{old.settings["TOKEN_ENCRYPTION_KEY"]}"}}',
    }
    assert token_vault("rewrap", "--dry-run", folder=tmp_path, settings=settings).returncode == 0
    assert len(files(tmp_path / "audit")) == 1
    assert token_vault("rewrap", folder=tmp_path, settings=settings).returncode == 0
    assert [
        (event["operation"], event["service"], event["scheme"]) for event in members(files(tmp_path / "audit"))
    ] == [
        ("store", "tests", "local:v1"),
        ("rewrap", "token-vault-rewrap", "local:v2"),
    ]
    assert verified(files(tmp_path / "audit")).is_whole
