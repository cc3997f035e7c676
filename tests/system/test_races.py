"""Clients of several workers change one token at once: exactly one wins, and the answers show which."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations
from uuid import uuid4

import pytest

from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve, Server
from tests.support.process.wire import Answer, Wire, token_path, wires
from tests.support.process.workers import one_wire_to_each_worker
from tests.support.sizes import SOAK, size
from tests.support.stack.supabase import SupabaseStack

WORKERS = 3
CONTENDERS = 8
ROTATIONS = {"sqlite": size(50, 1_000), "supabase": size(20, 250), "postgres": size(20, 250)}
NEW_TOKENS = size(4, 25)
CHANGES = size(20, 300)


def _home(store: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    folder = tmp_path_factory.mktemp(store)
    if store == "sqlite":
        return new_home(folder)
    stack: SupabaseStack = request.getfixturevalue("supabase_stack")
    stack.reset()
    if store == "postgres":
        return new_home(folder, TOKEN_STORE=store, DATABASE_URL=stack.login_url)
    return new_home(folder, TOKEN_STORE=store, SUPABASE_URL=stack.url, SUPABASE_SERVICE_KEY=stack.service_key)


@pytest.fixture(scope="module", params=["sqlite", "supabase", *(["postgres"] if SOAK else [])])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, serve: Serve) -> Iterator[Server]:
    with serve(_home(request.param, request, tmp_path_factory), workers=WORKERS) as server:
        yield server


@pytest.fixture
def one_wire_each(server: Server) -> Iterator[list[Wire]]:
    with one_wire_to_each_worker(server) as opened:
        yield opened


def _all_at_once(contenders: list[Wire], method: str, path: str, secrets: list[str], **conditions: str) -> list[Answer]:
    """Send every request before the first answer is read."""
    for wire, secret in zip(contenders, secrets, strict=True):
        wire.ask(method, path, {"access_token": secret}, **conditions)
    return [wire.receive() for wire in contenders]


def test_exactly_one_of_two_rotations_of_a_version_wins(server: Server, one_wire_each: list[Wire]) -> None:
    pairs = list(combinations(one_wire_each, 2))
    assert len(pairs) == 3
    path = token_path(uuid4())
    first = one_wire_each[0].call("PUT", path, {"access_token": "the first"}).body["version"]
    for version in range(first, first + ROTATIONS[server.home.settings.get("TOKEN_STORE", "sqlite")]):
        secrets = [f"one of {version}", f"other of {version}"]
        pair = list(random.choice(pairs))  # noqa: S311  a draw, not a secret
        answers = _all_at_once(pair, "POST", f"{path}/rotate", secrets, if_match=f'"{version}"')
        assert sorted(answer.status for answer in answers) == [200, 412]
        winner = next(at for at, answer in enumerate(answers) if answer.status == 200)
        revealed = pair[1 - winner].call("GET", path)
        assert answers[winner].etag == revealed.etag == f'"{version + 1}"'
        assert revealed.body["access_token"] == secrets[winner]


def test_one_of_eight_stores_creates_and_the_others_replace_in_turn(server: Server) -> None:
    secrets = [f"from client {number}" for number in range(CONTENDERS)]
    with wires(server, CONTENDERS) as contenders:
        for _ in range(NEW_TOKENS):
            path = token_path(uuid4())
            answers = _all_at_once(contenders, "PUT", path, secrets)
            first, *others = sorted((answer.body["version"], answer.status) for answer in answers)
            assert first[1] == 201
            assert others == [(version, 200) for version in range(first[0] + 1, first[0] + CONTENDERS)]
            last = next(at for at, answer in enumerate(answers) if answer.body["version"] == others[-1][0])
            revealed = contenders[0].call("GET", path)
            assert (revealed.etag, revealed.body["access_token"]) == (answers[last].etag, secrets[last])


def test_exactly_one_of_eight_creations_succeeds(server: Server) -> None:
    secrets = [f"from client {number}" for number in range(CONTENDERS)]
    with wires(server, CONTENDERS) as contenders:
        for _ in range(NEW_TOKENS):
            path = token_path(uuid4())
            answers = _all_at_once(contenders, "PUT", path, secrets, if_none_match="*")
            assert sorted(answer.status for answer in answers) == [201] + [412] * (CONTENDERS - 1)
            winner = next(at for at, answer in enumerate(answers) if answer.status == 201)
            revealed = contenders[0].call("GET", path)
            assert (revealed.etag, revealed.body["access_token"]) == (answers[winner].etag, secrets[winner])


def test_every_worker_reveals_an_acknowledged_change_at_once(one_wire_each: list[Wire]) -> None:
    """Other processes see only committed changes, so an answer before the commit would be found."""
    path = token_path(uuid4())
    etags = set()
    for version in range(1, CHANGES + 1):
        writer, *readers = random.sample(one_wire_each, WORKERS)
        etag = writer.call("PUT", path, {"access_token": f"secret {version}"}).etag
        assert etag not in etags
        etags.add(etag)
        for reader in readers:
            reader.ask("GET", path)
        revealed = [reader.receive() for reader in readers]
        assert {answer.etag for answer in revealed} == {etag}
        assert {answer.body["access_token"] for answer in revealed} == {f"secret {version}"}
