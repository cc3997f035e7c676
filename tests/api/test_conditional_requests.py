"""ETags: `If-Match` and `If-None-Match`, on both stores."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.support.api.fixtures import problem
from tests.support.stores.stores import Store

CANVAS = "/v1/users/cd613e30-d8f1-4adf-91b7-584a2265b1f5/tokens/canvas"
BODY = {"access_token": "x"}


def _write(client: httpx.Client, how: str, headers: dict[str, str]) -> httpx.Response:
    match how:
        case "put":
            return client.put(CANVAS, json=BODY, headers=headers)
        case "rotate":
            return client.post(f"{CANVAS}/rotate", json=BODY, headers=headers)
        case "patch":
            return client.patch(CANVAS, json={"metadata": {"a": 1}}, headers=headers)
        case _:
            return client.delete(CANVAS, headers=headers)


every_write = pytest.mark.parametrize("how", ["put", "rotate", "patch", "delete"])


@every_write
def test_a_write_to_the_required_version_succeeds(client: httpx.Client, how: str) -> None:
    etag = client.put(CANVAS, json=BODY).headers["etag"]
    assert _write(client, how, {"If-Match": etag}).status_code in {200, 204}


@every_write
@pytest.mark.parametrize("condition", ['"2"', 'W/"{version}"', '"x"', '"2", "3"', '""', '"0{version}"'])
def test_a_write_to_another_version_conflicts(
    client: httpx.Client, served_store: Store, how: str, condition: str
) -> None:
    version = client.put(CANVAS, json=BODY).json()["version"]
    before = served_store.rows()
    problem(_write(client, how, {"If-Match": condition.format(version=version)}), 412, "version_conflict")
    assert served_store.rows() == before


@every_write
def test_one_of_several_versions_suffices(client: httpx.Client, how: str) -> None:
    etag = client.put(CANVAS, json=BODY).headers["etag"]
    assert _write(client, how, {"If-Match": f'"7" , {etag}'}).status_code in {200, 204}


@every_write
@pytest.mark.parametrize("condition", ["1", '"1', "*, *", '"1" "2"', '"1 "', ""])
def test_a_malformed_condition_is_refused(client: httpx.Client, how: str, condition: str) -> None:
    client.put(CANVAS, json=BODY)
    problem(_write(client, how, {"If-Match": condition}), 422, "invalid_request")


@every_write
def test_a_star_requires_that_the_token_exists(client: httpx.Client, how: str) -> None:
    if how == "put":
        problem(_write(client, how, {"If-Match": "*"}), 412, "version_conflict")
        problem(_write(client, how, {"If-Match": '"1"'}), 412, "version_conflict")
    client.put(CANVAS, json=BODY)
    assert _write(client, how, {"If-Match": "*"}).status_code in {200, 204}


def test_a_repeated_condition_is_one_list(client: httpx.Client) -> None:
    etag = client.put(CANVAS, json=BODY).headers["etag"]
    headers = [("If-Match", '"7"'), ("If-Match", etag)]
    assert client.patch(CANVAS, json={"metadata": {}}, headers=headers).status_code == 200
    headers = [("If-Match", "*"), ("If-Match", '"1"')]
    problem(client.patch(CANVAS, json={"metadata": {}}, headers=headers), 422, "invalid_request")


@pytest.mark.parametrize("how", ["rotate", "patch", "delete"])
def test_if_none_match_is_for_put_alone(client: httpx.Client, how: str) -> None:
    client.put(CANVAS, json=BODY)
    problem(_write(client, how, {"If-None-Match": "*"}), 422, "invalid_request")


def test_if_none_match_creates_only(client: httpx.Client) -> None:
    only_create = {"If-None-Match": "*"}
    assert client.put(CANVAS, json=BODY, headers=only_create).status_code == 201
    problem(client.put(CANVAS, json=BODY, headers=only_create), 412, "version_conflict")
    problem(client.put(CANVAS, json=BODY, headers={"If-None-Match": '"1"'}), 422, "invalid_request")
    problem(client.put(CANVAS, json=BODY, headers={**only_create, "If-Match": "*"}), 422, "invalid_request")


def test_unconditional_writers_all_succeed_in_turn(client: httpx.Client) -> None:
    first = client.put(CANVAS, json=BODY).json()["version"]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda n: client.put(CANVAS, json={"access_token": f"t{n}"}), range(12)))
    assert [answer.status_code for answer in answers] == [200] * 12
    assert sorted(answer.json()["version"] for answer in answers) == list(range(first + 1, first + 13))
    last = max(range(12), key=lambda n: int(answers[n].json()["version"]))
    assert client.get(CANVAS).json()["access_token"] == f"t{last}"


@pytest.mark.parametrize("how", ["delete", "erase"])
def test_no_etag_of_a_deleted_token_comes_again(client: httpx.Client, how: str) -> None:
    """Each token is deleted as soon as it has been stored and changed, within milliseconds."""
    seen: set[str] = set()
    for number in range(20):
        made = [
            client.put(CANVAS, json=BODY),
            *(client.patch(CANVAS, json={"status": "ok"}) for _ in range(number % 4)),
        ]
        etags = {answer.headers["etag"] for answer in made}
        assert len(etags) == len(made)
        assert not etags & seen
        seen |= etags
        gone = client.delete(CANVAS) if how == "delete" else client.delete(CANVAS.removesuffix("/canvas"))
        assert gone.status_code in {200, 204}
