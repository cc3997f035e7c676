"""The worker processes of a server, and the one at the other end of a connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.support.process.server import Server
from tests.support.process.wire import Wire, wires
from tests.support.stack.loopback import accepted, workers_below

_TRIED: Final = 200


def workers_of(server: Server) -> frozenset[int]:
    """Return the process ids of the workers, or that of the server itself if it has none."""
    return workers_below(server.process.pid)


def worker_of_each(server: Server, wires: list[Wire]) -> list[int | None]:
    """Return for each connection the worker that accepted it, or `None` if none has yet."""
    workers = accepted(server.process.pid, server.port)
    return [workers.get(wire.local_port) for wire in wires]


@contextmanager
def one_wire_to_each_worker(server: Server) -> Iterator[list[Wire]]:
    """Connect until each worker has accepted a connection; the kernel chooses which one accepts."""
    with wires(server, _TRIED) as opened:
        for tried, wire in enumerate(opened, start=1):
            wire.call("GET", "/healthz")
            owners = worker_of_each(server, opened[:tried])
            if set(owners) == workers_of(server):
                break
        yield [opened[owners.index(worker)] for worker in workers_of(server)]
