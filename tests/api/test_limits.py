"""RequestLimits of services and of the process, over HTTP; and that no place is ever lost."""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
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
from tests.support.stores.stores import SqliteStore, raw_row

USER = "cd613e30-d8f1-4adf-91b7-584a2265b1f5"
CANVAS = f"/v1/users/{USER}/tokens/canvas"
BODY = b'{"access_token": "x"}'
WELL = {"status": "ok"}
FULL = "too many keys of old tokens are being derived"


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {"RATE_LIMIT_PER_SECOND": "60", "MAXIMUM_CONCURRENT_PER_SERVICE": "2", "MAXIMUM_CONCURRENT": "4"}
    with running_service(tmp_path_factory.mktemp("tight"), settings) as service:
        yield service


def test_beyond_its_rate_a_service_is_told_how_long_to_wait_and_that_is_true(tight: Service) -> None:
    with tight.client("read") as client, tight.client("full") as another:
        answers = [client.get(f"/v1/users/{USER}/tokens") for _ in range(400)]
        assert {answer.status_code for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        problem(refused, 429, "rate_limited")
        assert another.put(CANVAS, json={"access_token": "x"}).status_code in {200, 201}, "another service is served"
        last = client.get(f"/v1/users/{USER}/tokens")
        while last.status_code == 200:
            last = client.get(f"/v1/users/{USER}/tokens")
        time.sleep(int(last.headers["retry-after"]))
        assert client.get(f"/v1/users/{USER}/tokens").status_code == 200


def test_a_batch_costs_as_much_as_its_tokens(tight: Service) -> None:
    batch = {"tokens": [{"user_id": USER, "provider": "canvas"}] * 100}
    with tight.client("reveal") as client:
        answers = [client.post("/v1/tokens/batch-get", json=batch) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 429], "120 tokens at once, and 60 a second"
    problem(answers[1], 429, "rate_limited")


def test_the_excess_of_one_service_is_429_and_of_the_process_503_and_probes_are_exempt(tight: Service) -> None:
    with ExitStack() as stack:
        waiting = list(stack.enter_context(_held(tight, "write", 2)))
        with tight.client("write") as client:
            problem(client.put(CANVAS, json={"access_token": "x"}), 429, "rate_limited")
        waiting += stack.enter_context(_held(tight, "full", 2))
        with tight.client("canvas") as client:
            problem(client.get(CANVAS), 503, "overloaded")
            requests = scraped(client).labelled("token_vault_requests_total")
            refused = frozenset({("route", "shed"), ("method", "GET"), ("status", "503")})
            assert requests[refused] == 1, "alerts count it among the failing calls"
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
        for connection in waiting:
            connection.finish()
    with tight.client("canvas") as client:
        assert client.get(CANVAS).status_code == 200


def test_callers_that_leave_give_their_places_back(tight: Service) -> None:
    for _ in range(10):
        with _held(tight, "write", 2):
            pass  # gone in the middle of the body
    deadline = time.monotonic() + 5
    with tight.client("write") as client:
        while client.put(CANVAS, json={"access_token": "x"}).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.parametrize("end", ["answers", "raises", "is cancelled"])
async def test_every_end_of_a_request_gives_its_places_back(end: str) -> None:
    limits = RequestLimits(concurrent=1, concurrent_per_service=1)
    entered = asyncio.Event()

    async def app(scope: Any, _receive: Any, _send: Any) -> None:
        scope["state"]["admitted"].enter_service("jobs")
        entered.set()
        if end == "raises":
            raise ValueError
        if end == "is cancelled":
            await asyncio.sleep(60)

    async def unused(*_: Any) -> Any:
        raise AssertionError

    scope: Any = {"type": "http", "path": "/v1/users", "state": {"request_id": "1"}}
    request = asyncio.ensure_future(Admission(app, limits=limits)(scope, unused, unused))
    await entered.wait()
    if end == "is cancelled":
        assert (limits.in_flight, limits.in_flight_of("jobs")) == (1, 1)
        request.cancel()
    await asyncio.wait([request], timeout=5)
    assert request.done()
    assert (limits.in_flight, limits.in_flight_of("jobs")) == (0, 0)
    if end == "raises":
        assert isinstance(request.exception(), ValueError)


class _Held:
    """A request whose body is not complete, and whose caller has been asked for it: it holds its places."""

    def __init__(self, service: Service, key: str) -> None:
        url = httpx.URL(service.url)
        self._connection = socket.create_connection((url.host, url.port or 0), timeout=5)
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
    """Hold so many places of a service; those of callers that have just left may be given back a moment later."""
    held: list[_Held] = []
    deadline = time.monotonic() + 5
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


@contextmanager
def _beside_a_flood(folder: Path, secrets: Mapping[str, str]) -> Iterator[tuple[httpx.Client, list[str]]]:
    """Yield the client of a service whose old tokens these are, by user, and the refusals of another's flood."""
    store = SqliteStore(folder / "vault.db")
    with running_service(folder, {**store.environment(), "REWRAP_ON_READ": "false"}) as service:
        prepare(store.path, service.keys["reveal"], folder / "users")
        _, *users = (folder / "users").read_text().splitlines()
        for user, secret in secrets.items():
            store.insert_raw(**raw_row(user_id=user, access_token=legacy_ciphertext(secret, user), metadata=WELL))
        with _flooded(service, users) as refused, service.client("full") as another:
            while not refused:
                time.sleep(0.05)
            yield another, refused


def test_a_flood_of_old_tokens_leaves_another_service_its_turns(tmp_path: Path) -> None:
    """Each of them takes a PBKDF2. Two batches are more than may wait, and the flood asks again at once."""
    secrets = {str(uuid4()): f"secret {number}" for number in range(10)}
    with _beside_a_flood(tmp_path, secrets) as (another, refused):
        before, reasons = len(refused), list[str]()
        for user, secret in secrets.items():
            answer = another.get(f"/v1/users/{user}/tokens/canvas")
            while answer.status_code == 503 and len(reasons) < 20:  # a busy machine derives nothing in two seconds
                reasons.append(answer.json()["detail"])
                answer = another.get(f"/v1/users/{user}/tokens/canvas")
            assert answer.json()["access_token"] == secret
    assert set(reasons) <= {"the key could not be derived in time", "the key was not there in time"}
    assert len(refused) > before, "all the while others were told that the queue is full"


def test_a_flood_of_old_tokens_takes_no_place_of_anothers_batch(tmp_path: Path) -> None:
    """Two seconds may be too few for a whole batch beside a flood, but what was derived of it is kept."""
    secrets = {str(uuid4()): f"secret {number}" for number in range(80)}
    with _beside_a_flood(tmp_path, secrets) as (another, _):
        left, read, reasons, rounds = list(secrets), dict[str, str](), set[str](), list[int]()
        while left and len(rounds) < 30:  # a busy machine derives little in two seconds
            batch = [{"user_id": user, "provider": "canvas"} for user in left]
            results = another.post("/v1/tokens/batch-get", json={"tokens": batch}).json()["results"]
            for user, one in zip(left, results, strict=True):
                if "token" in one:
                    read[user] = one["token"]["access_token"]
                else:
                    reasons.add(one["problem"]["detail"])
            left = [user for user in secrets if user not in read]
            rounds.append(len(left))
    assert read == secrets
    assert reasons <= {"the key could not be derived in time", "the key was not there in time"}


@contextmanager
def _flooded(service: Service, users: list[str]) -> Iterator[list[str]]:
    """Read old tokens of ever other users, in three batches at a time; yields what was refused for want of room."""
    refused: list[str] = []
    over = threading.Event()

    def read(turns: Iterator[str]) -> None:
        with service.client("reveal") as client:
            while not over.is_set():
                batch = [{"user_id": next(turns), "provider": "canvas"} for _ in range(100)]
                results = client.post("/v1/tokens/batch-get", json={"tokens": batch}).json()["results"]
                refused.extend(one["problem"]["detail"] for one in results if one["problem"]["detail"] == FULL)

    threads = [threading.Thread(target=read, args=(itertools.cycle(users[number::3]),)) for number in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield refused
    finally:
        over.set()
        for thread in threads:
            thread.join()
