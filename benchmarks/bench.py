"""The context of every measurement: servers, durations and the client."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

from app.callers.service_key_file import add_key
from app.callers.service_keys import Scope, ServiceKey, generate_key, hash_key
from app.security.keyring import new_key_text
from benchmarks.load import Load, OpenPlan, Plan, drive, drive_open
from benchmarks.requests import Requests
from benchmarks.rounds import Contestant
from benchmarks.servers import Server, Servers
from tests.support.stack.reaper import Reaper

CONNECTIONS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One run."""

    quick: bool
    turns: int
    openbao: Path | None
    folder: Path
    servers: Servers
    requests: Requests
    reaper: Reaper
    client: ProcessPoolExecutor
    loads: list[Load] = field(default_factory=list)

    @property
    def load_seconds(self) -> float:
        """The time of one turn."""
        return 0.8 if self.quick else 1.5

    def drive(self, plan: Plan) -> Load:
        load = self.client.submit(drive, plan).result()
        self.loads.append(load)
        return load

    def drive_open(self, plan: OpenPlan) -> Load:
        load = self.client.submit(drive_open, plan).result()
        self.loads.append(load)
        return load

    def over_and_over(
        self, server: Server, requests: tuple[bytes, ...], *, connections: int = CONNECTIONS
    ) -> Contestant:
        """Return a contestant that repeats these requests for `load_seconds`."""
        plan = Plan(
            port=server.port,
            requests=requests,
            connections=connections,
            seconds=self.load_seconds,
            over_and_over=True,
        )
        return lambda: self.drive(plan)

    def stored(self, server: Server, user_ids: list[str], store: Callable[[str], bytes] | None = None) -> None:
        """Store a token for each user, with the vault's request or that of another server."""
        requests = tuple(map(store or self.requests.store, user_ids))
        self.drive(Plan(port=server.port, requests=requests, connections=CONNECTIONS, seconds=60.0))


@contextmanager
def opened(*, quick: bool = False, turns: int = 3, openbao: Path | None = None) -> Iterator[Bench]:
    """Set up a run, and remove its processes and files afterwards."""
    with (
        closing(Reaper()) as reaper,
        TemporaryDirectory(prefix="vault-benchmarks-") as name,
        ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as client,
    ):
        folder = Path(name)
        reaper.remove_folder(folder)
        reaper.watch(client.submit(os.getpid).result(), signal.SIGTERM)  # the worker process would wait for ever
        key = generate_key()
        service_keys = folder / "service-keys.json"
        add_key(service_keys, ServiceKey(service="benchmarks", sha256=hash_key(key), scopes=frozenset(Scope)))
        settings = {"TOKEN_ENCRYPTION_KEY": new_key_text(), "SERVICE_KEYS_FILE": str(service_keys)}
        yield Bench(
            quick=quick,
            turns=turns,
            openbao=openbao,
            folder=folder,
            servers=Servers(folder, reaper, settings),
            requests=Requests(key),
            reaper=reaper,
            client=client,
        )
