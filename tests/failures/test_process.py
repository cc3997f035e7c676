"""Failures of the process, its clock and its files."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key, render_key_list
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.failures.load import path_of
from tests.support.failures.scenario import recovery_bound_seconds, require_documented_failure
from tests.support.failures.table import BY_NAME
from tests.support.process.home import COMMAND, environment, new_home
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore
from tests.support.waiting import eventually

START_SECONDS = 120
FULL = "/dev/full"  # every write to this device fails with ENOSPC


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SqliteStore:
    return SqliteStore(tmp_path_factory.mktemp("process") / "vault.db")


@pytest.fixture(scope="module")
def service(store: SqliteStore) -> Iterator[Service]:
    with running_service(store.path.parent, store.environment()) as service:
        yield service


@pytest.fixture
def key_file(store: SqliteStore) -> Iterator[Path]:
    """The service keys file, restored at the end."""
    file = store.path.with_name("service-keys.json")
    content = file.read_text()
    yield file
    file.write_text(content)


def test_service_keys_file_invalid(service: Service, store: SqliteStore, key_file: Path) -> None:
    content = key_file.read_text()
    require_documented_failure(
        "Service keys file invalid or missing",
        service=service,
        store=store,
        breaks=lambda: key_file.write_text(content[:-20]),
        mends=lambda: key_file.write_text(content),
    )


def test_a_service_key_expires_without_leeway(service: Service, key_file: Path) -> None:
    """No clock skew is added: `expires_at` is compared with the replica's own clock."""
    failure = BY_NAME["Service key expires"]
    assert failure.status is not None
    assert failure.code is not None
    expiring, lasting = generate_key(), generate_key()
    path = f"/v1/users/{uuid4()}/tokens"

    def status(key: str) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.get(f"{service.url}{path}", headers=headers, trust_env=False, verify=PLAIN_HTTP).status_code

    def write_keys(expires_at: datetime) -> None:
        scopes = frozenset({Scope.READ})
        key_file.write_text(
            render_key_list(
                [
                    ServiceKey(service="x", sha256=hash_key(expiring), scopes=scopes, expires_at=expires_at),
                    ServiceKey(service="y", sha256=hash_key(lasting), scopes=scopes),
                ]
            )
        )

    expires_at = datetime.now(UTC) + timedelta(seconds=2)
    write_keys(expires_at)
    eventually(lambda: status(lasting) == 200)  # the file has been read
    eventually(lambda: datetime.now(UTC) >= expires_at)
    headers = {"Authorization": f"Bearer {expiring}"}
    with httpx.Client(base_url=service.url, headers=headers, trust_env=False, verify=PLAIN_HTTP) as client:
        problem(client.get(path), failure.status, failure.code)
        assert client.get("/readyz").status_code == 200
    write_keys(datetime.now(UTC) + timedelta(minutes=30))
    eventually(lambda: status(expiring) == 200, within_seconds=recovery_bound_seconds(failure))


def test_log_disk_full(tmp_path: Path) -> None:
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
