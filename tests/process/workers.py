"""Which worker process is at the other end of a connection, as Linux's `/proc` tells it."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.process.wire import wires

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.process.server import Server
    from tests.process.wire import Wire

_PROC: Final = Path("/proc")
_TRIED: Final = 200


def workers_of(server: Server) -> frozenset[int]:
    """Return the process ids of the workers; the one process itself where it has none."""
    tasks = (_PROC / str(server.process.pid) / "task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    # another child of the same parent cleans up after `multiprocessing`
    workers = {int(child) for child in children if b"--multiprocessing-fork" in _command(child)}
    return frozenset(workers or {server.process.pid})


def worker_of_each(server: Server, wires: list[Wire]) -> list[int | None]:
    """Return for each connection the worker that has accepted it, `None` where none has yet."""
    ports = dict(_accepted(server))
    return [ports.get(wire.local_port) for wire in wires]


@contextmanager
def one_wire_to_each_worker(server: Server) -> Iterator[list[Wire]]:
    """Connect until each worker has accepted somebody; which one accepts is up to the kernel."""
    with wires(server, _TRIED) as opened:
        for tried, wire in enumerate(opened, start=1):
            wire.call("GET", "/healthz")
            owners = worker_of_each(server, opened[:tried])
            if set(owners) == workers_of(server):
                break
        yield [opened[owners.index(worker)] for worker in workers_of(server)]


def _accepted(server: Server) -> Iterator[tuple[int, int]]:
    """Yield the client's port and the worker of each connection to the server."""
    clients = dict(_clients_by_inode(server.port))
    for worker in workers_of(server):
        for descriptor in (_PROC / str(worker) / "fd").iterdir():
            try:
                target = descriptor.readlink().name
            except FileNotFoundError:  # closed since it was listed
                continue
            inode = target.removeprefix("socket:[").removesuffix("]")
            if inode in clients:
                yield clients[inode], worker


def _clients_by_inode(server_port: int) -> Iterator[tuple[str, int]]:
    for line in (_PROC / "net" / "tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.partition(":")[2], 16) for address in fields[1:3])
        if local == server_port:
            yield fields[9], remote


def _command(process: str) -> bytes:
    try:
        return (_PROC / process / "cmdline").read_bytes()
    except FileNotFoundError:
        return b""
