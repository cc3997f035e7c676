"""Limits of services and of the process over HTTP. No slot is ever lost."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.api.middleware import Admission
from app.callers.rate_limits import RequestLimits
from benchmarks.attackers import prepare
from tests.support.api.fixtures import problem
from tests.support.api.service import Service, running_service
from tests.support.observability.exposed import scraped
from tests.support.security.legacy_tokens import legacy_ciphertext
from tests.support.sizes import size
from tests.support.stores.stores import SqliteStore, raw_row
from tests.support.waiting import eventually

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
BODY = b'{"access_token": "x"}'
WELL = {"status": "ok"}
IN_TIME = {"the key could not be derived in time", "the key was not available in time"}
FULL = "too many keys of old tokens are being derived"


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"RATE_LIMIT_PER_SECOND": "5", "MAXIMUM_CONCURRENT_PER_SERVICE": "2", "MAXIMUM_CONCURRENT": "4"}
    with running_service(tmp_path_factory.mktemp("tight"), settings) as service:
        yield service


def test_a_service_over_its_rate_gets_a_true_retry_after(tight: Service) -> None:
    with tight.client("read") as client, tight.client("full") as another:
        answer = client.get(f"/v1/users/{USER}/tokens")
        while answer.status_code == 200:
            answer = client.get(f"/v1/users/{USER}/tokens")
        problem(answer, 429, "rate_limited")
        assert another.put(CANVAS, json={"access_token": "x"}).is_success, "another service is served"
        time.sleep(int(answer.headers["retry-after"]))
        assert client.get(f"/v1/users/{USER}/tokens").status_code == 200


def test_a_batch_costs_as_much_as_its_tokens(tight: Service) -> None:
    batch = {"tokens": [{"user_id": str(uuid4()), "provider": "canvas"} for _ in range(100)]}
    with tight.client("reveal") as client:
        answers = [client.post("/v1/tokens/batch-get", json=batch) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429], "a burst of 100 tokens"
    problem(answers[1], 429, "rate_limited")


def test_excess_of_a_service_is_429_and_of_the_process_503(tight: Service) -> None:
    with ExitStack() as stack:
        waiting = list(stack.enter_context(_held(tight, "write", 2)))
        with tight.client("write") as client:
            problem(client.put(CANVAS, json={"access_token": "x"}), 429, "rate_limited")
        waiting += stack.enter_context(_held(tight, "full", 2))
        with tight.client("canvas") as client:
            problem(client.get(CANVAS), 503, "overloaded")
            requests = scraped(client).labelled("token_vault_requests_total")
            refused = frozenset({("route", "shed"), ("method", "GET"), ("status", "503")})
            assert requests[refused] == 1, "counted among the failing calls of the alerts"
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
        for connection in waiting:
            connection.finish()
    with tight.client("canvas") as client:
        assert client.get(CANVAS).status_code == 200


def test_disconnected_callers_free_their_slots(tight: Service) -> None:
    for _ in range(10):
        with _held(tight, "write", 2):
            pass  # disconnected within the body
    with tight.client("write") as client:
        eventually(lambda: client.put(CANVAS, json={"access_token": "x"}).is_success)


@pytest.mark.parametrize("end", ["answers", "raises", "is cancelled"])
async def test_every_end_of_a_request_frees_its_slots(end: str) -> None:
    limits = RequestLimits(concurrent=1, concurrent_per_service=1)
    entered = asyncio.Event()

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"]["admitted"].enter_service("jobs")
        entered.set()
        if end == "raises":
            raise ValueError
        if end == "is cancelled":
            await asyncio.sleep(600)

    async def unused(*_: Any) -> Any:
        raise AssertionError

    scope: Any = {"type": "http", "path": "/v1/users", "state": {"request_id": "1"}}
    request = asyncio.ensure_future(Admission(app, limits=limits)(scope, unused, unused))
    await entered.wait()
    if end == "is cancelled":
        assert (limits.in_flight, limits.in_flight_of("jobs")) == (1, 1)
        request.cancel()
    await asyncio.wait([request], timeout=60)
    assert request.done()
    assert (limits.in_flight, limits.in_flight_of("jobs")) == (0, 0)
    if end == "raises":
        assert isinstance(request.exception(), ValueError)


class _Held:
    """A request with an incomplete body that the service has asked for, so it occupies its slots."""

    def __init__(self, service: Service, key: str) -> None:
        url = httpx.URL(service.url)
        self._connection = socket.create_connection((url.host, url.port or 0), timeout=60)
        head = (
            f"PUT {CANVAS} HTTP/1.1\r\nHost: vault\r\nAuthorization: Bearer {service.keys[key]}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n"
        )
        self._connection.sendall(head.encode())
        self.begun = self._connection.recv(4096).startswith(b"HTTP/1.1 100 ")

    def finish(self) -> None:
        self._connection.sendall(BODY)
        assert self._connection.recv(4096).startswith(b"HTTP/1.1 20")

    def close(self) -> None:
        self._connection.close()


@contextmanager
def _held(service: Service, key: str, count: int) -> Iterator[list[_Held]]:
    """Occupy `count` slots of a service; slots of callers that have just disconnected are freed a moment later."""
    held: list[_Held] = []
    deadline = time.monotonic() + 60
    try:
        while len(held) < count:
            one = _Held(service, key)
            if one.begun:
                held.append(one)
            else:
                one.close()
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield held
    finally:
        for one in held:
            one.close()


@pytest.fixture(scope="module")
def flood_target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, SqliteStore, list[str]]]:
    """A service, its store, and the users of a flood, whose tokens take a key derivation each."""
    folder = tmp_path_factory.mktemp("flood")
    store = SqliteStore(folder / "vault.db")
    settings = {"REWRAP_ON_READ": "false", "MAXIMUM_CONCURRENT_PER_SERVICE": "400"}  # four batches
    with running_service(folder, {**store.environment(), **settings}) as service:
        prepare(store.path, service.keys["reveal"], folder / "users")
        _, *users = (folder / "users").read_text().splitlines()
        yield service, store, users


@contextmanager
def _beside_a_flood(
    target: tuple[Service, SqliteStore, list[str]], secrets: Mapping[str, str]
) -> Iterator[tuple[httpx.Client, list[str]]]:
    """Store these old tokens, by user; yield a client of another service, and the refusals of the flood."""
    service, store, users = target
    for user, secret in secrets.items():
        store.insert_raw(**raw_row(user_id=user, access_token=legacy_ciphertext(secret, user), metadata=WELL))
    with _flooded(service, users) as refused, service.client("full") as another:
        eventually(lambda: bool(refused))
        yield another, refused


def test_a_flood_of_old_tokens_does_not_block_another_service(
    flood_target: tuple[Service, SqliteStore, list[str]],
) -> None:
    """Each old token takes a PBKDF2. Two batches fill the queue, and the flood asks again at once."""
    secrets = {str(uuid4()): f"secret {number}" for number in range(size(4, 10))}
    with _beside_a_flood(flood_target, secrets) as (another, refused):
        before, reasons = len(refused), list[str]()
        for user, secret in secrets.items():
            answer = another.get(f"/v1/users/{user}/tokens/canvas")
            while answer.status_code == 503 and len(reasons) < 20:  # a busy machine derives nothing in two seconds
                reasons.append(answer.json()["detail"])
                answer = another.get(f"/v1/users/{user}/tokens/canvas")
            assert answer.json()["access_token"] == secret
        eventually(lambda: len(refused) > before)  # the queue is full all the time
    assert set(reasons) <= IN_TIME


def test_a_flood_of_old_tokens_does_not_block_another_batch(
    flood_target: tuple[Service, SqliteStore, list[str]],
) -> None:
    """Two seconds may be too short for a whole batch during a flood, but the keys derived in them are kept."""
    secrets = {str(uuid4()): f"secret {number}" for number in range(size(20, 80))}
    with _beside_a_flood(flood_target, secrets) as (another, _):
        left, read, reasons, rounds = list(secrets), dict[str, str](), set[str](), list[int]()
        while left and len(rounds) < 30:  # a busy machine derives little in two seconds
            batch = [{"user_id": user, "provider": "canvas"} for user in left]
            for user, one in zip(left, _results(another, batch), strict=True):
                if "token" in one:
                    read[user] = one["token"]["access_token"]
                else:
                    reasons.add(one["problem"]["detail"])
            left = [user for user in secrets if user not in read]
            rounds.append(len(left))
    assert read == secrets
    assert reasons <= IN_TIME


def _results(client: httpx.Client, batch: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the results of a batch; one that fails with a single problem gives it for each token."""
    answer = client.post("/v1/tokens/batch-get", json={"tokens": batch})
    results: list[dict[str, Any]] = answer.json().get("results") or [{"problem": answer.json()}] * len(batch)
    return results


@contextmanager
def _flooded(service: Service, users: list[str]) -> Iterator[list[str]]:
    """Read old tokens of other users, in three batches at a time; yields the refusals because of a full queue."""
    refused: list[str] = []
    is_over = threading.Event()

    def read(users: Iterator[str]) -> None:
        with service.client("reveal") as client:
            while not is_over.is_set():
                batch = [{"user_id": next(users), "provider": "canvas"} for _ in range(100)]
                details = [one["problem"]["detail"] for one in _results(client, batch)]
                refused.extend(detail for detail in details if detail == FULL)

    threads = [threading.Thread(target=read, args=(itertools.cycle(users[number::3]),)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield refused
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
