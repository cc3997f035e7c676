"""The process itself, its clock and its files."""

from __future__ import annotations

import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx

from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key, render_key_list
from tests.support.api.fixtures import problem
from tests.support.api.service import running_service
from tests.support.failures.load import path_of
from tests.support.failures.scenario import require
from tests.support.failures.table import BY_NAME
from tests.support.process.home import COMMAND, environment, new_home
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

START_SECONDS = 120
FULL = "/dev/full"  # every write to it is the kernel's ENOSPC


def test_service_keys_file_broken(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "vault.db")
    with running_service(tmp_path, store.environment()) as service:
        file = tmp_path / "service-keys.json"
        whole = file.read_text()
        require(
            "Service-keys file broken or missing",
            service=service,
            store=store,
            breaks=lambda: file.write_text(whole[:-20]),
            mends=lambda: file.write_text(whole),
        )


def test_a_service_key_ends_to_the_second(tmp_path: Path) -> None:
    """Nothing is added for clocks that differ: an operator's "until" means just that, by the replica's own clock."""
    failure = BY_NAME["Service key at its end by this machine's clock"]
    assert failure.status is not None
    assert failure.code is not None
    assert failure.recovers_within_seconds is not None
    key, file = generate_key(), tmp_path / "service-keys.json"

    def let_it_end(ends: datetime) -> None:
        entry = ServiceKey(service="x", sha256=hash_key(key), scopes=frozenset({Scope.READ}), expires_at=ends)
        file.write_text(render_key_list([entry]))

    with running_service(tmp_path, SqliteStore(tmp_path / "vault.db").environment()) as service:
        ends = datetime.now(UTC) + timedelta(seconds=4)
        let_it_end(ends)
        headers = {"Authorization": f"Bearer {key}"}
        with httpx.Client(base_url=service.url, headers=headers, trust_env=False, verify=PLAIN_HTTP) as client:
            tokens = f"/v1/users/{uuid4()}/tokens"
            eventually(lambda: client.get(tokens).status_code == 200, within_seconds=3)
            time.sleep(max(0.0, (ends - datetime.now(UTC)).total_seconds()))
            problem(client.get(tokens), failure.status, failure.code)
            assert client.get("/readyz").status_code == 200
            let_it_end(datetime.now(UTC) + timedelta(minutes=5))
            eventually(lambda: client.get(tokens).status_code == 200, within_seconds=failure.recovers_within_seconds)


def test_disk_full_below_the_log(tmp_path: Path) -> None:
    home = new_home(tmp_path, LOG_LEVEL="DEBUG")
    headers = {"Authorization": f"Bearer {home.service_key}"}
    with open(FULL, "wb") as full:  # noqa: PTH123  a device
        process = subprocess.Popen(
            [COMMAND, "serve"], cwd=tmp_path, env=environment(home.settings), stdout=full, stderr=full
        )
    try:
        url = f"http://127.0.0.1:{home.settings['PORT']}"
        with httpx.Client(base_url=url, headers=headers, trust_env=False, verify=PLAIN_HTTP) as client:
            eventually(lambda: _answers(client), within_seconds=START_SECONDS)
            user_id = str(uuid4())
            assert client.put(path_of(user_id), json={"access_token": "kept"}).status_code == 201
            assert client.get(path_of(user_id)).json()["access_token"] == "kept"
            problem(client.get("/v1/users/x/tokens/canvas"), 422, "invalid_request")
            assert client.get("/readyz").status_code == 200
        assert [row["user_id"] for row in SqliteStore(tmp_path / "data" / "vault.db").rows()] == [user_id]
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False
