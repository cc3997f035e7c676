"""Three vaults behind a load balancer are restarted one after the other, under constant load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from tests.support.process.balancer import Balancer, balancing
from tests.support.process.home import Home, new_home
from tests.support.process.server import Serve
from tests.support.process.storing_client import secret_of
from tests.support.process.wire import Wire, token_path, wires
from tests.support.sizes import SOAK, size
from tests.support.stack.loopback import free_port
from tests.support.stack.postgres import Postgres
from tests.support.stack.reaper import Reaper
from tests.support.waiting import eventually

REPLICAS = 3
CALLERS = size(6, 16)
ROUNDS = size(1, 5)
MORE_ANSWERS = size(10, 100)  # of each caller, between two restarts
PAUSE_SECONDS = size(60, 2) / 1000
DRAIN_SECONDS = 3  # thirty checks of the balancer


class Caller:
    """Stores, reveals and rotates tokens over one kept connection, and opens a new one only if an answer says so."""

    def __init__(self, balancer: Balancer) -> None:
        self.acknowledged: dict[UUID, int] = {}
        self.failures: list[str] = []
        self.answers = 0
        self._wire = Wire(balancer)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._call_until_stopped, name="caller")
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _call_until_stopped(self) -> None:
        with closing(self._wire):
            while not self._stopped.is_set():
                user_id = uuid4()
                for method, action, status, version in (
                    ("PUT", "", 201, 1),
                    ("GET", "", 200, 1),
                    ("POST", "/rotate", 200, 2),
                    ("GET", "", 200, 2),
                ):
                    self._call(method, user_id, action, status, version)
                    self._stopped.wait(PAUSE_SECONDS)

    def _call(self, method: str, user_id: UUID, action: str, status: int, version: int) -> None:
        secret = secret_of(user_id, version)
        try:
            answer = self._wire.call(
                method, token_path(user_id) + action, None if method == "GET" else {"access_token": secret}
            )
        except (OSError, HTTPException) as error:
            self.failures.append(f"{method}{action}: {error!r}")
            self._wire.close()  # the next call opens a new connection
            return
        self.answers += 1
        if answer.status != status or answer.body.get("access_token", secret) != secret:
            self.failures.append(f"{method}{action}: {answer.status} {answer.body}")
        elif method != "GET":
            self.acknowledged[user_id] = version


@pytest.fixture(params=["postgres", *(["sqlite"] if SOAK else [])])
def homes(request: pytest.FixtureRequest, postgres: Postgres, tmp_path: Path) -> Iterator[list[Home]]:
    """The homes of the replicas and of the balancer: one service key and one store, but a port for each."""
    with ExitStack() as stack:
        settings = {"SQLITE_PATH": str(tmp_path / "vault.db")}
        if request.param == "postgres":
            database = stack.enter_context(postgres.new_database())
            database.migrate()
            settings = {"TOKEN_STORE": "postgres", "DATABASE_URL": postgres.uri(database.name)}
        home = new_home(tmp_path, SHUTDOWN_DRAIN_SECONDS=str(DRAIN_SECONDS), **settings)
        ports: set[int] = set()
        while len(ports) < REPLICAS + 1:
            ports.add(free_port())
        yield [replace(home, settings={**home.settings, "PORT": str(port)}) for port in ports]


def test_a_rolling_restart_fails_no_request_and_loses_no_write(
    homes: list[Home], serve: Serve, stack_reaper: Reaper
) -> None:
    front, *replicas = homes
    ports = [int(home.settings["PORT"]) for home in replicas]
    callers: list[Caller] = []

    def wait_for_answers() -> None:
        goals = [(caller, caller.answers + MORE_ANSWERS) for caller in callers]
        eventually(lambda: all(caller.failures or caller.answers >= goal for caller, goal in goals))

    with ExitStack() as stack:
        balancer = stack.enter_context(balancing(front, ports, reaper=stack_reaper))
        running = []
        for home in replicas:
            context = ExitStack()
            running.append((context.enter_context(serve(home)), stack.enter_context(context)))
        eventually(lambda: balancer.ready == set(ports))
        callers += [Caller(balancer) for _ in range(CALLERS)]
        try:
            wait_for_answers()
            for _ in range(ROUNDS):
                for place, home in enumerate(replicas):
                    server, context = running[place]
                    assert server.stop().exit_code == 0
                    context.close()
                    running[place] = (context.enter_context(serve(home)), context)
                    eventually(lambda: balancer.ready == set(ports))
                    wait_for_answers()
        finally:
            for caller in callers:
                caller.stop()
        assert [failure for caller in callers for failure in caller.failures] == []
        with wires(running[0][0], 1) as (wire,):
            for user_id, version in (pair for caller in callers for pair in caller.acknowledged.items()):
                assert wire.call("GET", token_path(user_id)).body["access_token"] == secret_of(user_id, version)
