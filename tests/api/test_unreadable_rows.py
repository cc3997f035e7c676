"""One row that does not decode costs nothing but itself, on every store."""

from __future__ import annotations

from uuid import uuid4

import httpx

from tests.support.api.fixtures import ON_EVERY_STORE, problem
from tests.support.api.service import Service
from tests.support.stores.stores import Store
from tests.support.stores.unreadable import DEEP, damage, damages_of

pytestmark = ON_EVERY_STORE
REPLACES = "PUT replaces it"


def _damaged(client: httpx.Client, store: Store, column: str, value: object) -> str:
    """Store two tokens of a new user, damage the one of Google, and return the path of both."""
    user = str(uuid4())
    path = f"/v1/users/{user}/tokens"
    for provider in ("canvas", "google"):
        assert client.put(f"{path}/{provider}", json={"access_token": provider}).status_code == 201
    damage(store, user, "google", column, value)
    return path


def test_a_list_reports_it_beside_the_others(client: httpx.Client, served_store: Store) -> None:
    for name, (column, value) in damages_of(served_store).items():
        path = _damaged(client, served_store, column, value)
        listed = client.get(path)
        assert listed.status_code == 200, name
        body = listed.json()
        assert [one["provider"] for one in body["tokens"]] == ["canvas"], name
        [unreadable] = body["unreadable"]
        assert (unreadable["provider"], unreadable["service_type"]) == ("google", "default"), name
        assert unreadable["problem"]["code"] == "store_misconfigured"
        assert REPLACES in unreadable["problem"]["detail"]
        client.delete(path)


def test_a_batch_reports_it_beside_the_others(client: httpx.Client, served_store: Store) -> None:
    for name, (column, value) in damages_of(served_store).items():
        path = _damaged(client, served_store, column, value)
        user = path.split("/")[3]
        asked = [{"user_id": user, "provider": provider} for provider in ("google", "canvas")]
        answer = client.post("/v1/tokens/batch-get", json={"tokens": asked})
        assert answer.status_code == 200, name
        bad, good = answer.json()["results"]
        assert bad["problem"]["code"] == "store_misconfigured", name
        assert good["token"]["access_token"] == "canvas", name


def test_calls_that_need_its_columns_are_refused(client: httpx.Client, served_store: Store) -> None:
    path = _damaged(client, served_store, "metadata", DEEP) + "/google"
    for answer in (
        client.get(path),
        client.patch(path, json={"status": "ok"}),
        client.post(f"{path}/rotate", json={"access_token": "x"}),
        client.post(f"{path}/rewrap"),
    ):
        assert REPLACES in str(problem(answer, 500, "store_misconfigured")["detail"])


def test_put_replaces_it_and_delete_deletes_it(client: httpx.Client, served_store: Store) -> None:
    for name, (column, value) in damages_of(served_store).items():
        path = _damaged(client, served_store, column, value)
        google = f"{path}/google"
        [unreadable] = client.get(path).json()["unreadable"]
        matching = {"If-Match": f'"{unreadable["version"]}"'}
        problem(client.put(google, json={"access_token": "x"}, headers={"If-Match": '"77"'}), 412, "version_conflict")
        assert client.put(google, json={"access_token": "new"}, headers=matching).status_code == 200, name
        assert client.get(google).json()["access_token"] == "new", name
        damage(served_store, path.split("/")[3], "google", column, value)
        problem(client.delete(google, headers={"If-Match": '"77"'}), 412, "version_conflict")
        assert client.delete(google).status_code == 204, name
        assert client.get(path).json().keys() == {"tokens"}, name


def test_it_does_not_stop_the_erasure_of_its_user(client: httpx.Client, served_store: Store) -> None:
    for name, (column, value) in damages_of(served_store).items():
        path = _damaged(client, served_store, column, value)
        assert client.delete(path).json() == {"deleted": 2}, name
    assert served_store.rows() == []


def test_the_vault_stays_ready_and_counts(client: httpx.Client, served_store: Store, service: Service) -> None:
    path = _damaged(client, served_store, "metadata", DEEP)
    client.delete(f"{path}/canvas")  # now it is the first row, and the only one
    assert client.get("/readyz").json()["checks"]["store"] == "up"
    assert client.get("/v1/encryption").json()["tokens"] == 1
    with service.client("canvas") as limited:
        assert limited.get(path).json() == {"tokens": []}, "a key for Canvas sees nothing of Google"
