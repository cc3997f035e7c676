"""A list of a user's tokens has a bound, and an erasure has none."""

from __future__ import annotations

from uuid import uuid4

import httpx

from app.api.schemas.answers import MAXIMUM_ANSWER_BYTES
from app.tokens.repository import MAXIMUM_LISTED
from tests.support.api.fixtures import problem
from tests.support.stores.stores import Store, raw_row

LARGE = {"metadata": {"note": "x" * 8_000}, "scopes": ["s" * 500] * 100}


def test_more_tokens_than_a_list_takes_are_a_problem_not_a_part(client: httpx.Client, served_store: Store) -> None:
    user = str(uuid4())
    path = f"/v1/users/{user}/tokens"
    rows = [raw_row(user_id=user, service_type=f"s{number}") for number in range(2 * MAXIMUM_LISTED + 3)]
    served_store.insert_many_raw(rows[:MAXIMUM_LISTED])
    assert len(client.get(path).json()["tokens"]) == MAXIMUM_LISTED
    served_store.insert_many_raw(rows[MAXIMUM_LISTED : MAXIMUM_LISTED + 1])
    refused = problem(client.get(path), 413, "answer_too_large")
    assert "more than 500 tokens" in str(refused["detail"])
    assert client.get(f"/v1/users/{uuid4()}/tokens").json() == {"tokens": []}, "another user is listed"
    served_store.insert_many_raw(rows[MAXIMUM_LISTED + 1 :])
    assert client.delete(path).json() == {"deleted": len(rows)}, "the erasure is not bounded"
    assert client.get(path).json() == {"tokens": []}


def test_tokens_larger_than_an_answer_are_a_problem_not_a_part(client: httpx.Client) -> None:
    path = f"/v1/users/{uuid4()}/tokens"
    for number in range(18):
        stored = client.put(
            f"{path}/canvas", params={"service_type": f"s{number}"}, json={"access_token": "x", **LARGE}
        )
        assert stored.status_code == 201
    assert "1 MiB" in str(problem(client.get(path), 413, "answer_too_large")["detail"])
    client.delete(f"{path}/canvas", params={"service_type": "s0"})
    listed = client.get(path)
    assert MAXIMUM_ANSWER_BYTES - 50_000 < len(listed.content) <= MAXIMUM_ANSWER_BYTES
    assert len(listed.json()["tokens"]) == 17
