"""POST …/rewrap encrypts one token under the primary key, and so does a read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.rewrap.stored_rows import (
    KEYS,
    Row,
    SqliteRows,
    access_of,
    broken_rows,
    differences_but_for_encryption,
    key_settings,
    local_encryption,
    pulseplan_rows,
    refresh_of,
    sealed_row,
    what_a_row_holds,
)
from tests.support.stack.kms import Kms
from tests.support.stores.stores import PostgresStore, SqliteStore, Store, SupabaseStore
from tests.support.waiting import eventually

SECOND = {**key_settings(2, 1), "REWRAP_ON_READ": "false"}


@pytest.fixture(scope="module", params=["sqlite", "postgres", "supabase"])
def vault(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, Store]]:
    """A service that encrypts under version 2, reads version 1, and rewraps only on request."""
    store = _store(request, tmp_path_factory.mktemp("store"))
    with running_service(tmp_path_factory.mktemp("service"), {**store.environment(), **SECOND}) as service:
        yield service, store


def _store(request: pytest.FixtureRequest, folder: Path) -> Store:
    if request.param == "sqlite":
        return SqliteStore(SqliteRows(folder / "vault.db").path)
    kind = PostgresStore if request.param == "postgres" else SupabaseStore
    return kind(request.getfixturevalue("supabase_stack"))


@pytest.fixture
def service(vault: tuple[Service, Store]) -> Service:
    return vault[0]


@pytest.fixture
def store(vault: tuple[Service, Store]) -> Store:
    return vault[1]


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as one:
        yield one


def _path(row: Row, action: str = "/rewrap") -> str:
    query = "" if row["service_type"] == "default" else f"?service_type={row['service_type']}"
    return f"/v1/users/{row['user_id']}/tokens/{row['provider']}{action}{query}"


def _insert(store: Store, row: Row) -> Row:
    """Insert the row, and return it as the store has it."""
    store.insert_raw(**row)
    return _found(store, row)


def _found(store: Store, row: Row) -> Row:
    [found] = [one for one in store.rows() if one["id"] == row["id"]]
    return found


def test_a_rewrap_changes_only_the_encryption(store: Store, client: httpx.Client) -> None:
    before = _insert(store, sealed_row(local_encryption(1), version=7, scopes=["read"]))
    answer = client.post(_path(before))
    assert answer.status_code == 200, answer.text
    after = _found(store, before)
    assert (answer.headers["etag"], answer.json()["version"], after["version"]) == ('"7"', 7, 7)
    assert answer.json()["encryption_method"] == "aes256-gcm-v2"
    assert after["encryption_scheme"] == "local:v2"
    assert after["metadata"]["encryption_method"] == "aes256-gcm-v2"
    assert list(differences_but_for_encryption(before, after)) == []
    assert what_a_row_holds(local_encryption(2), after) == (access_of(before["id"]), refresh_of(before["id"]))
    kept = client.post(_path(before, "/rotate"), json={"access_token": "next"}, headers={"If-Match": '"7"'})
    assert kept.status_code == 200, "the earlier ETag is still valid"


def test_the_answer_and_the_log_hold_no_secret(service: Service, store: Store, client: httpx.Client) -> None:
    row = _insert(store, sealed_row(local_encryption(1)))
    with service.logged() as lines:
        answer = client.post(_path(row))
    after = _found(store, row)
    secrets = [access_of(row["id"]), refresh_of(row["id"]), *KEYS.values()]
    secrets += [one[name] for one in (row, after) for name in ("access_token", "refresh_token")]
    assert [secret for secret in secrets if secret in answer.text + json.dumps(lines)] == []
    assert not {"access_token", "refresh_token"} & answer.json().keys()
    [line] = lines
    assert (line["operation"], line["service"], line["outcome"]) == ("rewrap", "full", "success")
    assert line["encryption_method"] == "aes256-gcm-v2"


def test_a_token_under_the_primary_key_is_left_alone(store: Store, client: httpx.Client) -> None:
    before = _insert(store, sealed_row(local_encryption(2)))
    answer = client.post(_path(before))
    assert (answer.status_code, answer.headers["etag"]) == (200, '"1"')
    assert _found(store, before) == before


@pytest.mark.parametrize("status", ["revoked", "needs_reauth", "error"])
def test_the_status_does_not_matter_and_stays(store: Store, client: httpx.Client, status: str) -> None:
    row = sealed_row(local_encryption(1), is_active=False)
    row["metadata"]["status"] = status
    before = _insert(store, row)
    assert client.post(_path(row)).json()["status"] == status
    after = _found(store, row)
    assert after["encryption_scheme"] == "local:v2"
    assert list(differences_but_for_encryption(before, after)) == []
    problem(client.get(_path(row, "")), 409, "token_inactive")


@pytest.mark.parametrize("prefixed", [True, False])
def test_a_pulseplan_ciphertext_becomes_a_bound_one(store: Store, client: httpx.Client, *, prefixed: bool) -> None:
    row, plaintext = next(pair for pair in pulseplan_rows() if pair[0]["access_token"].startswith("v") is prefixed)
    row["service_type"] = f"f-{uuid4().hex[:20]}"  # two of the stores are one database
    _insert(store, row)
    assert client.post(_path(row)).status_code == 200
    after = _found(store, row)
    assert after["encryption_scheme"] == "local:v2"
    assert what_a_row_holds(local_encryption(2), after) == (plaintext, "")
    assert client.get(_path(row, "")).json()["access_token"] == plaintext


@pytest.mark.parametrize("key", ["read", "reveal", "reveal_refresh", "write", "delete"])
def test_no_other_scope_is_enough(service: Service, store: Store, key: str) -> None:
    before = _insert(store, sealed_row(local_encryption(1)))
    with service.client(key) as client:
        problem(client.post(_path(before)), 403, "forbidden")
    assert _found(store, before) == before


def test_the_admin_scope_is_enough(service: Service, store: Store) -> None:
    row = _insert(store, sealed_row(local_encryption(1)))
    with service.client("admin") as client:
        assert client.post(_path(row)).status_code == 200
        problem(client.get(_path(row, "")), 403, "forbidden")


def test_a_key_for_one_provider_rewraps_that_one_alone(service: Service, store: Store) -> None:
    canvas, google = (_insert(store, sealed_row(local_encryption(1), provider=name)) for name in ("canvas", "google"))
    with service.client("canvas") as client:
        assert client.post(_path(canvas)).status_code == 200
        problem(client.post(_path(google)), 403, "forbidden")
    assert _found(store, google) == google


def test_a_rewrap_needs_a_live_key(service: Service, store: Store, client: httpx.Client) -> None:
    before = _insert(store, sealed_row(local_encryption(1)))
    problem(client.post(_path(before), headers={"Authorization": ""}), 401, "unauthenticated")
    with service.client("expired") as expired:
        problem(expired.post(_path(before)), 401, "unauthenticated")
    assert _found(store, before) == before


def test_a_token_that_does_not_exist_is_404(client: httpx.Client) -> None:
    problem(client.post(f"/v1/users/{uuid4()}/tokens/canvas/rewrap"), 404, "token_not_found")


def test_a_rewrap_honours_if_match(store: Store, client: httpx.Client) -> None:
    before = _insert(store, sealed_row(local_encryption(1), version=3))
    problem(client.post(_path(before), headers={"If-Match": '"2"'}), 412, "version_conflict")
    assert _found(store, before) == before
    assert client.post(_path(before), headers={"If-Match": '"3"'}).status_code == 200
    assert _found(store, before)["encryption_scheme"] == "local:v2"


@pytest.mark.parametrize(
    ("which", "code"),
    [
        ("flipped", "integrity"),
        ("foreign", "integrity"),
        ("unknown version", "key_denied"),
        ("nonsense", "malformed_ciphertext"),
    ],
)
def test_an_unreadable_token_stays_as_it_is(store: Store, client: httpx.Client, which: str, code: str) -> None:
    before = _insert(store, broken_rows()[which])
    problem(client.post(_path(before)), 500, code)
    assert _found(store, before) == before


def test_a_token_is_rewrapped_to_kms_but_not_in_an_outage(kms: Kms, tmp_path: Path) -> None:
    store = SqliteStore(SqliteRows(tmp_path / "vault.db").path)
    settings = {**store.environment(), **SECOND, **kms.environment(), "KMS_FALLBACK_TO_LOCAL": "true"}
    with running_service(tmp_path, settings) as service, service.client() as client:
        before = _insert(store, sealed_row(local_encryption(2)))
        kms.faults.down()
        problem(client.post(_path(before)), 503, "key_unavailable")
        assert _found(store, before) == before, "the fallback encrypts new tokens only"
        kms.faults.clear()
        eventually(lambda: client.post(_path(before)).status_code != 503)
        assert _found(store, before)["encryption_scheme"] == f"kms:{kms.key_arn}"
        assert client.get(_path(before, "")).json()["access_token"] == access_of(before["id"])


def test_a_read_rewraps_nothing_if_that_is_off(store: Store, client: httpx.Client) -> None:
    row = _insert(store, sealed_row(local_encryption(1)))
    assert client.get(_path(row, "")).status_code == 200
    time.sleep(0.2)  # a rewrap on read would come within a few milliseconds
    assert _found(store, row) == row


@pytest.fixture(params=["sqlite", "postgres", "supabase"])
def fresh_store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param != "sqlite":
        request.getfixturevalue("supabase")
    return _store(request, tmp_path)


def _is_rewrapped(store: Store, row: Row) -> bool:
    return bool(_found(store, row)["encryption_scheme"] == "local:v2")


def test_a_read_token_is_rewrapped_and_keeps_its_etag(fresh_store: Store, tmp_path: Path) -> None:
    read, batched, unread = (
        _insert(fresh_store, sealed_row(local_encryption(1), version=number)) for number in (4, 5, 6)
    )
    settings = {**fresh_store.environment(), **SECOND, "REWRAP_ON_READ": "true"}
    with running_service(tmp_path, settings) as service, service.client() as client:
        revealed = client.get(_path(read, ""))
        assert revealed.json()["access_token"] == access_of(read["id"])
        assert revealed.headers["etag"] == '"4"'
        tokens = [{"user_id": batched["user_id"], "provider": "canvas"}]
        assert client.post("/v1/tokens/batch-get", json={"tokens": tokens}).status_code == 200
        eventually(lambda: _is_rewrapped(fresh_store, read) and _is_rewrapped(fresh_store, batched))
        after = _found(fresh_store, read)
        assert list(differences_but_for_encryption(read, after)) == []
        assert not _is_rewrapped(fresh_store, unread)
        again = client.get(_path(read, ""), params={"include": "refresh_token"})
        assert again.headers["etag"] == '"4"'
        assert (again.json()["access_token"], again.json()["refresh_token"]) == (
            access_of(read["id"]),
            refresh_of(read["id"]),
        )
        rotated = client.post(_path(read, "/rotate"), json={"access_token": "next"}, headers={"If-Match": '"4"'})
        assert (rotated.status_code, rotated.headers["etag"]) == (200, '"5"')


def test_a_failed_rewrap_on_read_leaves_the_answer_intact(kms: Kms, tmp_path: Path) -> None:
    store = SqliteStore(SqliteRows(tmp_path / "vault.db").path)
    settings = {**store.environment(), **key_settings(1), **kms.environment()}
    with running_service(tmp_path, settings) as service, service.client() as client:
        row = _insert(store, sealed_row(local_encryption(1)))
        kms.disable(kms.key_arn)
        with service.logged() as lines:
            assert client.get(_path(row, "")).json()["access_token"] == access_of(row["id"])
            eventually(lambda: b'"rewrap-on-read"' in service.log.read_bytes())
    [line] = [line for line in lines if line.get("service") == "rewrap-on-read"]
    assert (line["operation"], line["outcome"]) == ("rewrap", "key_denied")
    assert _found(store, row) == row
