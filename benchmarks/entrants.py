"""What is measured side by side: the vault on each store, its baselines, and OpenBao."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from app.security.keyring import new_key_text
from benchmarks.bench import CONNECTIONS, Bench
from benchmarks.constant_app import PATH
from benchmarks.openbao import OpenBao, running_openbao
from benchmarks.requests import new_user_ids
from benchmarks.servers import Database, Server, supabase_project

STORES: Final = ("SQLite", "PostgreSQL", "Supabase")
WORKERS: Final = (1, 2)
TOKENS: Final = 500
BATCH: Final = 100
BATCH_CONNECTIONS: Final = 8
# a token of a batch counts as a request; by default a worker serves 256 at once for one service
_PLACES: Final = {"MAXIMUM_CONCURRENT": "2000", "MAXIMUM_CONCURRENT_PER_SERVICE": "2000"}
_STORES_PER_SECOND: Final = 6_000  # more than any entrant stores, so a turn ends by its time
_AUDIT: Final = {"AUDIT_LOG": "audit/audit.jsonl"}
_OPENBAO: Final = (("raft", False), ("file", False), ("raft", True), ("file", True))


@dataclass(frozen=True, slots=True)
class Entrant:
    """A server, the requests of one turn, and the processes that work for them.

    `database` has those behind the server. A request reveals or stores `tokens` tokens.
    """

    name: str
    port: int
    requests: Callable[[float], tuple[bytes, ...]]
    server: tuple[int, ...]
    database: tuple[int, ...] = ()
    connections: int = CONNECTIONS
    over_and_over: bool = True
    tokens: int = 1

    def with_connections(self, connections: int) -> Entrant:
        return replace(self, name=f"{self.name}, {connections} connections", connections=connections)


@dataclass(frozen=True, slots=True)
class _Vault:
    name: str
    server: Server
    database: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Field:
    """The running servers, and the entrants of each operation."""

    bench: Bench
    user_ids: list[str]
    vaults: tuple[_Vault, ...]
    openbaos: Mapping[str, OpenBao]
    baselines: tuple[Entrant, ...]

    def reveals(self) -> list[Entrant]:
        requests = tuple(map(self.bench.requests.reveal, self.user_ids))
        return [
            *(self._vault_entrant("reveal", vault, lambda _: requests) for vault in self.vaults),
            *(
                self._openbao_entrant("read", name, bao, partial(self._reads, bao))
                for name, bao in self.openbaos.items()
            ),
        ]

    def batches(self) -> list[Entrant]:
        starts = range(0, len(self.user_ids), BATCH)
        requests = tuple(self.bench.requests.batch(self.user_ids[start : start + BATCH]) for start in starts)
        return [
            replace(
                self._vault_entrant(f"batch of {BATCH}", vault, lambda _: requests),
                tokens=BATCH,
                connections=BATCH_CONNECTIONS,
            )
            for vault in self.vaults
        ]

    def stores(self) -> list[Entrant]:
        return [
            *(
                replace(
                    self._vault_entrant("store", vault, partial(_new_tokens, self.bench.requests.store)),
                    over_and_over=False,
                )
                for vault in self.vaults
            ),
            *(
                replace(self._openbao_entrant("write", name, bao, partial(_new_tokens, bao.store)), over_and_over=False)
                for name, bao in self.openbaos.items()
            ),
        ]

    def _reads(self, bao: OpenBao, _seconds: float) -> tuple[bytes, ...]:
        return tuple(map(bao.reveal, self.user_ids))

    def _vault_entrant(self, operation: str, vault: _Vault, requests: Callable[[float], tuple[bytes, ...]]) -> Entrant:
        return Entrant(f"{operation}, {vault.name}", vault.server.port, requests, (vault.server.pid,), vault.database)

    def _openbao_entrant(
        self, operation: str, name: str, bao: OpenBao, requests: Callable[[float], tuple[bytes, ...]]
    ) -> Entrant:
        return Entrant(f"{operation}, {name}", bao.server.port, requests, (bao.server.pid,))


def workers_text(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"


@contextmanager
def opened_field(bench: Bench) -> Iterator[Field]:
    """Start the databases, the vaults, the baselines and, if its program is given, OpenBao.

    Each store has a token of each of `TOKENS` users.
    """
    user_ids = new_user_ids(TOKENS)
    with ExitStack() as stack:
        database = stack.enter_context(supabase_project(bench.folder, bench.reaper))
        vaults = _vaults(bench, stack, database, user_ids)
        baselines = _baselines(bench, stack, database, user_ids)
        openbaos: dict[str, OpenBao] = {}
        if bench.openbao is not None:
            audited = {**_AUDIT, "AUDIT_KEY": new_key_text()}
            server = stack.enter_context(bench.servers.vault("audited", audited, workers=2))
            vaults.append(_Vault("SQLite with audit, 2 workers", server))
            bench.stored(server, user_ids)
            for storage, audit in _OPENBAO:
                name = f"OpenBao {storage}{' with audit' if audit else ''}"
                bao = stack.enter_context(running_openbao(bench.servers, bench.openbao, storage, audit=audit))
                bench.stored(bao.server, user_ids, bao.store)
                openbaos[name] = bao
        yield Field(bench, user_ids, tuple(vaults), openbaos, tuple(baselines))


def _vaults(bench: Bench, stack: ExitStack, database: Database, user_ids: list[str]) -> list[_Vault]:
    settings: dict[str, Mapping[str, str]] = {
        "SQLite": _PLACES,
        "PostgreSQL": {**_PLACES, "TOKEN_STORE": "postgres", "DATABASE_URL": database.url},
        "Supabase": {**_PLACES, "TOKEN_STORE": "supabase", **database.supabase},
    }
    processes = {
        "SQLite": (),
        "PostgreSQL": (database.postgres_pid,),
        "Supabase": (database.postgres_pid, database.postgrest_pid, database.gateway_pid),
    }
    vaults = []
    for store in STORES:
        for workers in WORKERS:
            server = stack.enter_context(bench.servers.vault(f"{store}-{workers}", settings[store], workers=workers))
            vaults.append(_Vault(f"{store}, {workers_text(workers)}", server, processes[store]))
            if store == "SQLite" or (store == "PostgreSQL" and workers == 1):  # the others share its table
                bench.stored(server, user_ids)
    return vaults


def _baselines(bench: Bench, stack: ExitStack, database: Database, user_ids: list[str]) -> list[Entrant]:
    """Start the constant route and asyncpg alone, with one and two workers each; PostgREST runs already."""
    row_requests = tuple(map(bench.requests.reveal, user_ids))
    constant_requests = (bench.requests.get(PATH),)
    environment = {"DATABASE_URL": database.url, "CALLER_KEY": bench.requests.service_key}
    postgres = (database.postgres_pid,)
    entrants = []
    for workers in WORKERS:
        name = workers_text(workers)
        constant = stack.enter_context(
            bench.servers.program(f"constant-{workers}", "benchmarks.constant_app", workers=workers)
        )
        entrants.append(Entrant(f"constant route, {name}", constant.port, lambda _: constant_requests, (constant.pid,)))
        bare = stack.enter_context(
            bench.servers.program(f"asyncpg-{workers}", "benchmarks.asyncpg_app", environment, workers=workers)
        )
        entrants.append(Entrant(f"asyncpg alone, {name}", bare.port, lambda _: row_requests, (bare.pid,), postgres))
    key = database.supabase["SUPABASE_SERVICE_KEY"]
    reads = tuple(_postgrest_read(key, user_id) for user_id in user_ids)
    entrants.append(
        Entrant("PostgREST itself", database.postgrest_port, lambda _: reads, (database.postgrest_pid,), postgres)
    )
    return entrants


def _new_tokens(store: Callable[[str], bytes], seconds: float) -> tuple[bytes, ...]:
    return tuple(map(store, new_user_ids(int(_STORES_PER_SECOND * seconds))))


def _postgrest_read(key: str, user_id: str) -> bytes:
    path = f"/oauth_tokens?select=*&user_id=eq.{user_id}&provider=eq.canvas&service_type=eq.default"
    return f"GET {path} HTTP/1.1\r\nHost: postgrest\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
