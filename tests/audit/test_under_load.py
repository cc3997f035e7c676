"""Every answer of the running service is in the audit trail, whatever happens to its process or disk."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from contextlib import closing, suppress
from http.client import HTTPException
from pathlib import Path
from uuid import uuid4

from tests.support.audit.trails import KEY_TEXT, files, keep, members, unread_fifo, verified
from tests.support.process.home import Home, new_home, token_vault
from tests.support.process.server import Serve, Server
from tests.support.process.storing_client import StoringClient
from tests.support.process.wire import Wire, token_path
from tests.support.rewrap.stored_rows import SqliteRows, encryption, key_settings, sealed_row
from tests.support.sizes import size
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

WORKERS = size(2, 4)
CLIENTS = 8
REVEALS = size(30, 100)  # of each client
BEFORE_KILL = size(150, 400)  # answers of all clients
SECRET = "canary-secret"
BOUND_SECONDS = 120.0
INTENT_BYTES = 700  # more than the intent of a deletion, and less than that and its event
STOPPED_SECONDS = 3.0  # more than a caller waits for its record


class RevealingClient:
    """Reveals in a thread, and remembers the request ids that were answered with 200."""

    def __init__(self, server: Server, user_id: object, reveals: int | None = None) -> None:
        self.answered: list[str] = []
        self._wire = Wire(server)
        self._path = token_path(user_id)
        self._reveals = reveals
        self._thread = threading.Thread(target=self._run, name="revealing-client")
        self._thread.start()

    def join(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with closing(self._wire), suppress(OSError, HTTPException):  # raised when the server is killed
            while self._reveals is None or number < self._reveals:
                number += 1
                request_id = uuid4().hex
                if self._wire.call("GET", self._path, X_Request_ID=request_id).status == 200:
                    self.answered.append(request_id)


def _home(folder: Path, **settings: str) -> Home:
    return new_home(folder, AUDIT_LOG="audit/audit.jsonl", AUDIT_KEY=KEY_TEXT, **settings)


def _stored(server: Server) -> str:
    user_id = str(uuid4())
    with closing(Wire(server)) as wire:
        assert wire.call("PUT", token_path(user_id), {"access_token": SECRET}).status == 201
    return user_id


def _revealed(home: Home) -> list[str]:
    """Return the request id of each successful reveal in the trail."""
    events = members(files(home.folder / "audit"))
    return [event["request_id"] for event in events if (event["operation"], event["outcome"]) == ("reveal", "success")]


def test_workers_record_exactly_what_they_answered_until_a_kill(tmp_path: Path, serve: Serve) -> None:
    """The kernel survives a kill, so this shows the order of record and answer, not that the disk has the record."""
    home = _home(tmp_path, AUDIT_MAX_BYTES="20000")  # about 30 events
    with serve(home, workers=WORKERS) as server:
        user_id = _stored(server)
        finite = [RevealingClient(server, user_id, reveals=REVEALS) for _ in range(CLIENTS)]
        for client in finite:
            client.join()
        answered = [request_id for client in finite for request_id in client.answered]
        assert len(answered) == CLIENTS * REVEALS
        assert sorted(_revealed(home)) == sorted(answered)
        endless = [RevealingClient(server, user_id) for _ in range(CLIENTS)]
        eventually(lambda: sum(len(client.answered) for client in endless) >= BEFORE_KILL)
        server.kill()
        for client in endless:
            client.join()
    answered += [request_id for client in endless for request_id in client.answered]
    recorded = _revealed(home)
    assert len(recorded) == len(set(recorded))
    assert set(answered) <= set(recorded)
    assert len(recorded) - len(answered) <= CLIENTS  # requests that were running at the kill
    assert len(files(home.folder / "audit")) > WORKERS * 3
    keep(home.folder / "audit", 0)  # another start
    report = verified(files(home.folder / "audit"))
    assert report.findings == []
    assert [note.problem for note in report.notes if note.problem != "torn"] == ["interrupted"] * WORKERS


def test_a_change_of_a_killed_process_has_left_its_intent(tmp_path: Path, serve: Serve) -> None:
    """Without intents, the trail says nothing about one row or so after each kill."""
    home = _home(tmp_path)
    with serve(home, workers=WORKERS) as server:
        clients = [StoringClient(server) for _ in range(CLIENTS)]
        eventually(lambda: sum(client.acknowledgements for client in clients) >= BEFORE_KILL)
        server.kill()
        for client in clients:
            client.join()
    intents = members(files(home.folder / "audit"), "intent")
    stored = {intent["user_id"] for intent in intents if intent["operation"] == "store"}
    rotated = {intent["user_id"] for intent in intents if intent["operation"] == "rotate"}
    for row in SqliteStore(home.folder / "data" / "vault.db").rows():
        assert row["user_id"] in (stored if row["created_at"] == row["updated_at"] else stored & rotated)
    keep(home.folder / "audit", 0)  # another start
    report = verified(files(home.folder / "audit"))
    outcomes = {event["intent"] for event in members(files(home.folder / "audit"))}
    assert report.findings == []
    assert {warning.problem for warning in report.warnings} <= {"no_outcome"}
    assert len(report.warnings) == len({intent["intent"] for intent in intents} - outcomes) <= CLIENTS


def _batch(user_id: str) -> dict[str, object]:
    return {"tokens": [{"user_id": user_id, "provider": "canvas", "service_type": f"s{n}"} for n in range(100)]}


def test_a_full_disk_refuses_every_secret_until_it_has_space(tmp_path: Path, serve: Serve) -> None:
    """A limit on file sizes stands in for the disk: the audit file has reached it, and the database has not."""
    home = _home(tmp_path)
    with serve(home) as server, server.client() as client:
        path = token_path(_stored(server))
        deleted_path = token_path(_stored(server))
        [file] = files(tmp_path / "audit")
        batch = _batch(path.split("/")[3])
        while file.stat().st_size < 200_000:
            client.post("/v1/tokens/batch-get", json=batch)
        assert (tmp_path / "data" / "vault.db-wal").stat().st_size < file.stat().st_size
        _, hard = resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE)
        # the first operation takes place before its record fails: there is space for its intent, but not for its event
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size + INTENT_BYTES, hard))
        delete = client.delete(deleted_path)
        refused = [delete, client.get(path), client.put(path, json={"access_token": SECRET}), client.get(path)]
        for answer in refused:
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
            assert (answer.json()["retryable"], answer.headers["retry-after"]) == (True, "1")
            assert SECRET not in answer.text
        unknown = client.get(path, headers={"Authorization": "Bearer no-such-key"})
        assert unknown.status_code == 401  # other refusals stay as they are
        eventually(lambda: client.get("/readyz").status_code == 503)  # readiness is cached for a second
        assert client.get("/readyz").json()["checks"]["audit"] == "down"
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        eventually(lambda: client.get(path).status_code == 200)
        assert client.get(deleted_path).status_code == 404
        output = server.stop().output
    assert SECRET not in output
    assert '"reason":"EFBIG"' in output
    [deleted] = [event for event in members([file]) if event["operation"] == "delete"]
    assert (deleted["outcome"], deleted["late"]) == ("success", True)
    assert deleted["request_id"] == delete.headers["x-request-id"]
    report = verified(files(tmp_path / "audit"))
    assert (report.findings, report.files) == ([], 1)


def test_a_process_that_was_stopped_reports_no_slow_disk(tmp_path: Path, serve: Serve) -> None:
    home = _home(tmp_path, AUDIT_SYNC="always")
    with serve(home) as server:
        user_id = _stored(server)
        clients = [RevealingClient(server, user_id) for _ in range(CLIENTS)]

        def answers_another(count: int) -> None:
            wanted = sum(len(client.answered) for client in clients) + count
            eventually(lambda: sum(len(client.answered) for client in clients) >= wanted)

        answers_another(50)
        os.killpg(server.pid, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        os.killpg(server.pid, signal.SIGCONT)
        answers_another(50)
        output = server.kill().output
        for client in clients:
            client.join()
    assert "audit_failed" not in output


def test_a_disk_that_hangs_delays_few_calls_and_only_on_tokens(tmp_path: Path, serve: Serve) -> None:
    home = new_home(tmp_path, AUDIT_LOG="fifo", AUDIT_KEY=KEY_TEXT)
    with unread_fifo(tmp_path) as (_, reader), serve(home) as server, server.client() as client:
        user_id = _stored(server)
        batch = _batch(user_id)
        for _ in range(2):  # the first one fills the pipe
            answer = client.post("/v1/tokens/batch-get", json=batch, timeout=BOUND_SECONDS)
            assert (answer.status_code, answer.json()["code"]) == (503, "audit_unavailable")
            assert client.get("/healthz", timeout=BOUND_SECONDS).status_code == 200

        def reveals() -> bool:
            with suppress(BlockingIOError):
                os.read(reader, 1 << 20)
            return client.get(token_path(user_id), timeout=BOUND_SECONDS).status_code == 200

        eventually(reveals)
        server.kill()


def test_rewrap_writes_a_chain_and_its_dry_run_does_not(tmp_path: Path) -> None:
    rows = SqliteRows(tmp_path / "vault.db")
    rows.insert([sealed_row(encryption(key_settings(1)))])
    settings = {
        **rows.settings(),
        **key_settings(2, 1),
        "AUDIT_LOG": "audit/audit.jsonl",
        "AUDIT_KEY": KEY_TEXT,
    }
    assert token_vault("rewrap", "--dry-run", folder=tmp_path, settings=settings).returncode == 0
    assert files(tmp_path / "audit") == []
    assert token_vault("rewrap", folder=tmp_path, settings=settings).returncode == 0
    [event] = members(files(tmp_path / "audit"))
    assert (event["operation"], event["service"], event["scheme"]) == ("rewrap", "token-vault-rewrap", "local:v2")
    assert verified(files(tmp_path / "audit")).is_intact
