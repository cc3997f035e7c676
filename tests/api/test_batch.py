"""Batches: different tokens, an answer of bounded size, and one problem if all tokens have it."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import httpx
import pytest

from app.api.schemas.answers import MAXIMUM_ANSWER_BYTES
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.stores.stores import SqliteStore

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
BATCH = "/v1/tokens/batch-get"
LARGE = "s" * 16_384


def _asked(count: int, user: str = USER) -> list[dict[str, str]]:
    return [{"user_id": user, "provider": "canvas", "service_type": f"s{number}"} for number in range(count)]


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("batch")
    with running_service(folder, SqliteStore(folder / "vault.db").environment()) as service:
        yield service


@pytest.fixture
def client(vault: Service) -> Iterator[httpx.Client]:
    with vault.client() as one:
        yield one


@pytest.mark.parametrize(
    "repeated",
    [
        {"user_id": USER, "provider": "canvas"},
        {"user_id": USER.upper(), "provider": "canvas"},
        {"user_id": USER, "provider": "canvas", "service_type": "default"},
    ],
)
def test_a_repeated_token_is_refused_with_its_places(client: httpx.Client, repeated: dict[str, str]) -> None:
    tokens = [{"user_id": USER, "provider": "notion"}, {"user_id": USER, "provider": "canvas"}, repeated]
    refused = problem(client.post(BATCH, json={"tokens": tokens}), 422, "invalid_request")
    assert refused["errors"] == [{"field": "tokens", "message": "must not repeat a token: 2 is 1 again"}]


def test_tokens_beyond_the_size_of_an_answer_get_a_problem(client: httpx.Client, vault: Service) -> None:
    user = str(uuid4())
    asked = _asked(60, user)
    for one in asked:
        path = f"/v1/users/{user}/tokens/canvas"
        body = {"access_token": LARGE, "refresh_token": LARGE}
        assert client.put(path, json=body, params={"service_type": one["service_type"]}).status_code == 201
    with vault.logged() as lines:
        answer = client.post(BATCH, json={"tokens": asked, "include": "refresh_token"})
    assert answer.status_code == 200
    assert MAXIMUM_ANSWER_BYTES - 50_000 < len(answer.content) < MAXIMUM_ANSWER_BYTES + 60 * 500
    results = answer.json()["results"]
    read = [one["token"]["service_type"] for one in results if "token" in one]
    assert read == [f"s{number}" for number in range(len(read))], "the first ones"
    assert {one["problem"]["code"] for one in results[len(read) :]} == {"answer_too_large"}
    logged = [(line["service_type"], line["outcome"]) for line in lines if line["event"] == "token_operation"]
    assert logged == [(f"s{number}", "answer_too_large") for number in range(len(read), 60)], "they are not revealed"
    left = asked[len(read) :]
    results = client.post(BATCH, json={"tokens": left, "include": "refresh_token"}).json()["results"]
    assert [one["token"]["refresh_token"] for one in results] == [LARGE] * len(left)


def test_a_batch_of_missing_tokens_has_a_problem_for_each(client: httpx.Client) -> None:
    results = client.post(BATCH, json={"tokens": _asked(2, str(uuid4()))}).json()["results"]
    assert [one["problem"]["code"] for one in results] == ["token_not_found"] * 2
