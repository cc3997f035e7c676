"""GET /v1/encryption counts the stored tokens and reveals nothing else."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.api.service import Service
from tests.support.rewrap.stored_rows import KEYS, broken_rows, local_encryption, pulseplan_rows, sealed_row
from tests.support.stores.stores import Store


def test_an_empty_store_has_nothing_to_count(client: httpx.Client) -> None:
    assert client.get("/v1/encryption").json() == {
        "primary_scheme": "local:v1",
        "tokens": 0,
        "due": 0,
        "unknown": 0,
        "schemes": [],
        "key_versions": [],
        "refused_without_legacy_formats": 0,
    }


def test_every_token_is_counted_by_what_it_needs(served_store: Store, client: httpx.Client) -> None:
    old = pulseplan_rows()
    both = sealed_row(local_encryption(2)) | {"encryption_scheme": None}
    both["refresh_token"] = old[0][0]["access_token"]
    rows = [
        *(sealed_row(local_encryption(1)) for _ in range(3)),
        *(sealed_row(local_encryption(2)) for _ in range(2)),
        *(row for row, _ in old),
        both,
        broken_rows()["nonsense"],
    ]
    for row in rows:
        served_store.insert_raw(**row)
    user_id = "0b6ad4f6-4f0c-4c58-9d6c-7dd1f8d0f0f1"
    assert client.put(f"/v1/users/{user_id}/tokens/canvas", json={"access_token": "of the vault's own"}).is_success
    answer = client.get("/v1/encryption")
    body: dict[str, Any] = answer.json()
    assert answer.headers["cache-control"] == "no-store"
    counted = {(one["scheme"], *one["materials"]): one["tokens"] for one in body["schemes"]}
    assert counted == {
        ("local:v1",): 4,
        ("local:v2",): 2,
        (None, "pulseplan-local:v1"): len(old),
        (None, "local:v2", "pulseplan-local:v1"): 1,
        (None, "local:v1", "unknown"): 1,
    }
    assert sum(counted.values()) == body["tokens"] == len(served_store.rows())
    assert (body["primary_scheme"], body["due"], body["unknown"]) == ("local:v1", body["tokens"] - 4, 1)
    first = 4 + len(old) + 1 + 1
    assert body["key_versions"] == [
        {"version": 1, "tokens": first, "refused_above": first},
        {"version": 2, "tokens": 3, "refused_above": first + 2},
    ]
    assert body["refused_without_legacy_formats"] == len(old) + 1


def test_counting_changes_nothing(served_store: Store, client: httpx.Client) -> None:
    for _ in range(5):
        served_store.insert_raw(**sealed_row(local_encryption(2)))
    before = served_store.rows()
    first, second = (client.get("/v1/encryption").json() for _ in range(2))
    assert first == second
    assert served_store.rows() == before


@pytest.mark.parametrize("key", ["read", "reveal", "reveal_refresh", "write", "delete"])
def test_no_other_scope_is_enough(service: Service, key: str) -> None:
    with service.client(key) as client:
        problem(client.get("/v1/encryption"), 403, "forbidden")


def test_the_admin_scope_is_enough(service: Service) -> None:
    with service.client("admin") as client:
        assert client.get("/v1/encryption").status_code == 200


def test_a_key_for_one_provider_may_not_count_the_others(service: Service, served_store: Store) -> None:
    served_store.insert_raw(**sealed_row(local_encryption(1)))
    with service.client("canvas") as client:
        body = problem(client.get("/v1/encryption"), 403, "forbidden")
    assert "tokens" not in body


def test_counting_needs_a_live_key(service: Service, client: httpx.Client) -> None:
    problem(client.get("/v1/encryption", headers={"Authorization": ""}), 401, "unauthenticated")
    with service.client("expired") as expired:
        problem(expired.get("/v1/encryption"), 401, "unauthenticated")


def test_the_counts_reveal_no_secret_and_no_user(service: Service, served_store: Store, client: httpx.Client) -> None:
    rows = [sealed_row(local_encryption(1)), broken_rows()["nonsense"]]
    for row in rows:
        served_store.insert_raw(**row)
    with service.logged() as lines:
        text = client.get("/v1/encryption").text
    shown = text + str(lines)
    hidden = [row[name] for row in rows for name in ("id", "user_id", "access_token", "refresh_token")]
    assert [one for one in [*hidden, *KEYS.values()] if one in shown] == []
