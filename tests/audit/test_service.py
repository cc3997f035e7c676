"""The events that the running service leaves for each call."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.api.refusal_events import OPERATIONS
from app.callers.service_keys import generate_key, hash_key
from app.config.settings import Settings
from app.main import create_app
from tests.support.api.service import Service, running_service
from tests.support.audit.trails import KEY_TEXT, files, members, verified
from tests.support.rewrap.stored_rows import half_legacy_row, local_encryption, sealed_row
from tests.support.security.keys import MASTER_KEY
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.stack.loopback import PLAIN_HTTP
from tests.support.stores.stores import SqliteStore, raw_row
from tests.support.waiting import eventually

SECRET = "canary-5a1f~access/token+with=signs"
REFRESH = "canary-77c2~refresh/token+with=signs"


class Audited:
    """A running service and its audit trail."""

    def __init__(self, service: Service, folder: Path, database: Path) -> None:
        self.service = service
        self.folder = folder
        self.database = database

    @contextmanager
    def recorded(self) -> Iterator[list[dict[str, Any]]]:
        """Collect the events written during the block."""
        before = len(self.events())
        events: list[dict[str, Any]] = []
        yield events
        events += self.events()[before:]

    def events(self) -> list[dict[str, Any]]:
        return members(files(self.folder))


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Audited]:
    folder = tmp_path_factory.mktemp("audited")
    settings = {
        "AUDIT_LOG": "audit/audit.jsonl",
        "AUDIT_KEY": KEY_TEXT,
        "AUDIT_SYNC": "always",
        "SQLITE_PATH": "vault.db",
        "REWRAP_ON_READ": "false",
    }
    with running_service(folder, settings) as service:
        yield Audited(service, folder / "audit", folder / "vault.db")
    report = verified(files(folder / "audit"))
    assert report.is_intact
    assert report.notes == []  # SIGTERM wrote the end line
    assert b"canary" not in b"".join(path.read_bytes() for path in files(folder / "audit"))


def _path(user_id: object, provider: str = "canvas") -> str:
    return f"/v1/users/{user_id}/tokens/{provider}"


def _columns(events: list[dict[str, Any]], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(event[name] for name in names) for event in events]


def test_every_operation_leaves_one_event(audited: Audited) -> None:
    user_id = str(uuid4())
    path = _path(user_id)
    body = {"access_token": SECRET, "refresh_token": REFRESH, "base_url": "https://canvas.example.edu"}
    with audited.recorded() as events, audited.service.client() as client:
        answers = [
            client.put(path, json=body),
            client.get(path),
            client.get(f"{path}?include=refresh_token"),
            client.get(f"/v1/users/{user_id}/tokens"),
            client.patch(path, json={"metadata": {"course_count": 4}}),
            client.post(f"{path}/rotate", json=body),
            client.post(f"{path}/rewrap"),
            client.post("/v1/tokens/batch-get", json={"tokens": [{"user_id": user_id, "provider": "canvas"}]}),
            client.delete(path),
            client.get(path),
            client.delete(f"/v1/users/{user_id}/tokens"),
        ]
    assert [answer.status_code for answer in answers] == [201, 200, 200, 200, 200, 200, 200, 200, 204, 404, 200]
    both = ["access_token", "refresh_token"]
    assert _columns(events, "operation", "outcome", "provider", "revealed", "scheme") == [
        ("store", "success", "canvas", [], "local:v1"),
        ("reveal", "success", "canvas", both[:1], "local:v1"),
        ("reveal", "success", "canvas", both, "local:v1"),
        ("list", "success", None, [], None),
        ("patch", "success", "canvas", [], "local:v1"),
        ("rotate", "success", "canvas", [], "local:v1"),
        ("rewrap", "success", "canvas", [], "local:v1"),
        ("reveal", "success", "canvas", both[:1], "local:v1"),
        ("delete", "success", "canvas", [], "local:v1"),
        ("reveal", "token_not_found", "canvas", [], None),
        ("erase_user", "success", None, [], None),
    ]
    fingerprint = hash_key(audited.service.keys["full"])[:12]
    assert set(_columns(events, "service", "key", "user_id", "address", "purpose")) == {
        ("full", fingerprint, user_id, "127.0.0.1", None)
    }
    assert [event["request_id"] for event in events] == [answer.headers["x-request-id"] for answer in answers]


def test_a_reveal_names_the_family_that_was_opened(audited: Audited) -> None:
    """The row claims KMS in its metadata, or names no scheme; the event names what the ciphertexts are.

    A busy machine derives the key of a legacy ciphertext late: then the call is repeated.
    """
    store = SqliteStore(audited.database)
    bound = sealed_row(local_encryption(1))
    legacy = raw_row(metadata={"status": "ok", "encryption_method": "kms", "kms_key_id": "canvas_kms_0"})
    legacy["access_token"] = legacy_ciphertext("old", legacy["user_id"])
    both = half_legacy_row()
    for row in (bound, legacy, both):
        store.insert_raw(**row)
    with audited.recorded() as events, audited.service.client() as client:
        for row in (bound, legacy, both):
            eventually(lambda: client.get(_path(row["user_id"])).status_code == 200)  # noqa: B023  called at once
        eventually(lambda: client.get(f"{_path(both['user_id'])}?include=refresh_token").status_code == 200)
        assert client.get(_path(uuid4())).status_code == 404
        assert client.post(f"{_path(legacy['user_id'])}/rewrap").status_code == 200
    opened = [(one["operation"], one.get("opened")) for one in events if one["outcome"] != "key_unavailable"]
    assert opened == [
        ("reveal", ["local"]),
        ("reveal", ["pulseplan-local"]),
        ("reveal", ["local"]),
        ("reveal", ["local", "pulseplan-local"]),
        ("reveal", None),
        ("rewrap", ["pulseplan-local"]),
    ]


def test_a_rotation_names_the_families_that_it_opened(audited: Audited) -> None:
    """The access token, which proves the row's URL, and a refresh token that stays under a new key."""
    store = SqliteStore(audited.database)
    legacy = raw_row()
    for column in ("access_token", "refresh_token"):
        legacy[column] = legacy_ciphertext(column, legacy["user_id"])
    half = half_legacy_row()
    bare = raw_row(provider_url=None, access_token="unreadable", refresh_token=None)
    for row in (legacy, half, bare):
        store.insert_raw(**row)
    with audited.recorded() as events, audited.service.client() as client:
        for row in (legacy, half, bare):
            path, new = f"{_path(row['user_id'])}/rotate", {"access_token": "new"}
            eventually(lambda: client.post(path, json=new).status_code == 200)  # noqa: B023  called at once
    opened = [one.get("opened") for one in events if one["outcome"] == "success"]
    assert opened == [["pulseplan-local"], ["local", "pulseplan-local"], None]


def test_the_purpose_of_a_call_is_recorded(audited: Audited) -> None:
    with audited.recorded() as events, audited.service.client() as client:
        client.get(_path(uuid4()), headers={"X-Purpose": "nightly-sync"})
    assert _columns(events, "purpose", "outcome") == [("nightly-sync", "token_not_found")]


def test_every_refusal_leaves_one_event_without_what_was_sent(audited: Audited) -> None:
    user_id = str(uuid4())
    path = _path(user_id)
    json_type = {"Content-Type": "application/json"}
    unknown = generate_key()
    with audited.recorded() as events:
        with audited.service.client("reveal") as client:
            client.put(path, json={"access_token": SECRET})
            client.get(f"{path}?include=refresh_token")
            client.get(f"{path}?service_type={SECRET}")
            client.get(f"{path}?canary={SECRET}")
            client.get(path, headers={"X-Purpose": f"Not a purpose {SECRET}"})
            client.get(_path("canary-no-uuid"))
            client.get(_path(user_id, "Canary"))
            client.post("/v1/tokens/batch-get", json={"canary": SECRET})
        with audited.service.client("write") as client:
            client.put(path, content=b"{canary", headers=json_type)
            client.put(path, json={"access_token": ""})
            client.post(f"{path}/rotate", content=b'"' + b"canary" * 20_000 + b'"', headers=json_type)
        with audited.service.client("canvas") as client:
            client.get(_path(user_id, "google"))
            client.delete(f"/v1/users/{user_id}/tokens")
        with httpx.Client(base_url=audited.service.url, trust_env=False, verify=PLAIN_HTTP) as client:
            client.get(path)
            client.get(path, headers={"Authorization": f"Bearer {unknown}", "X-Purpose": "canary"})
            client.get(path, headers={"Authorization": f"Bearer {audited.service.keys['expired']}"})
    assert _columns(events, "service", "operation", "outcome", "user_id", "provider") == [
        ("reveal", "store", "forbidden", user_id, "canvas"),
        ("reveal", "reveal", "forbidden", user_id, "canvas"),
        ("reveal", "reveal", "invalid_request", user_id, None),
        ("reveal", "reveal", "invalid_request", user_id, "canvas"),
        ("reveal", "reveal", "invalid_request", user_id, "canvas"),
        ("reveal", "reveal", "invalid_request", None, None),
        ("reveal", "reveal", "invalid_request", user_id, None),
        ("reveal", "reveal", "invalid_request", None, None),
        ("write", "store", "malformed_body", user_id, "canvas"),
        ("write", "store", "invalid_request", user_id, "canvas"),
        ("write", "rotate", "body_too_large", user_id, "canvas"),
        ("canvas", "reveal", "forbidden", user_id, "google"),
        ("canvas", "erase_user", "forbidden", user_id, None),
        *[(None, "reveal", "unauthenticated", user_id, "canvas")] * 3,
    ]
    assert {event["purpose"] for event in events} == {None}
    assert [event["key"] is None for event in events] == [False] * 13 + [True] * 3
    written = json.dumps(events)
    assert hash_key(unknown)[:12] not in written
    assert hash_key(audited.service.keys["expired"])[:12] not in written
    assert base64.b64encode(SECRET.encode()).decode()[:16] not in written


def test_rate_limited_calls_do_not_fill_the_trail(tmp_path: Path) -> None:
    settings = {"AUDIT_LOG": "audit/audit.jsonl", "AUDIT_KEY": KEY_TEXT, "RATE_LIMIT_PER_SECOND": "1"}
    asked = 200  # the limit permits a burst of half of them
    with running_service(tmp_path, settings) as service, service.client() as client:
        answers = [client.get(_path(uuid4())).status_code for _ in range(asked)]
    assert answers.count(429) > 80
    events = members(files(tmp_path / "audit"))
    [end] = members(files(tmp_path / "audit"), "end")
    limited = [event for event in events if event["outcome"] == "rate_limited"]
    assert {event["service"] for event in limited} == {"full"}
    assert 10 <= len(limited) < answers.count(429)
    assert len(events) + sum(event.get("omitted", 0) for event in events) + end["omitted"] == asked


def test_each_item_of_a_batch_leaves_one_event(audited: Audited) -> None:
    user_id = str(uuid4())
    with audited.service.client() as client:
        for service_type in ("default", "another"):
            client.put(_path(user_id), json={"access_token": SECRET}, params={"service_type": service_type})
    asked = [{"user_id": user_id, "provider": provider} for provider in ("canvas", "google", "canvas", "notion")]
    asked[2]["service_type"] = "another"
    with audited.recorded() as events, audited.service.client("canvas") as client:
        answer = client.post("/v1/tokens/batch-get", json={"tokens": asked})
    assert answer.status_code == 200
    assert sorted(_columns(events, "provider", "outcome")) == [
        ("canvas", "success"),
        ("canvas", "success"),
        ("google", "forbidden"),
        ("notion", "forbidden"),
    ]
    assert {event["request_id"] for event in events} == {answer.headers["x-request-id"]}


def test_a_call_without_a_token_leaves_no_event(audited: Audited) -> None:
    with audited.recorded() as events, audited.service.client() as client:
        client.get("/healthz")
        client.get("/readyz")
        client.get("/v1/encryption")
        client.get("/v1/nothing-here")
    assert events == []


def test_readiness_checks_the_trail(audited: Audited) -> None:
    with audited.service.client() as client:
        assert client.get("/readyz").json()["checks"]["audit"] == "up"


def test_openapi_describes_the_purpose_header_of_each_call(audited: Audited) -> None:
    with audited.service.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    for path, methods in paths.items():
        for operation in methods.values():
            names = [parameter["name"] for parameter in operation.get("parameters", [])]
            assert names.count("X-Purpose") == path.startswith(("/v1/", "/oauth/"))


def test_every_token_route_has_an_operation(tmp_path: Path) -> None:
    settings = Settings(  # type: ignore[call-arg]  # pydantic-settings takes `_env_file`, and fields from elsewhere
        _env_file=None, TOKEN_ENCRYPTION_KEY=MASTER_KEY, SQLITE_PATH=str(tmp_path / "vault.db")
    )
    named = {
        getattr(route, "name", "") for route in create_app(settings).routes if "/token" in getattr(route, "path", "")
    }
    assert named == set(OPERATIONS)
