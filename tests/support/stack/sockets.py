"""Which process is at which end of a TCP connection over the loopback, as Linux's `/proc` tells it."""

from collections.abc import Iterator
from pathlib import Path

_PROC = Path("/proc")


def workers_below(pid: int) -> frozenset[int]:
    """Return the process ids of a vault's workers; the one process itself where it has none."""
    tasks = (_PROC / str(pid) / "task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    # another child of the same parent cleans up after `multiprocessing`
    workers = {int(child) for child in children if b"--multiprocessing-fork" in _command(child)}
    return frozenset(workers or {pid})


def accepted(pid: int, port: int) -> dict[int, int]:
    """Return the worker of each connection that a vault has accepted on this port, by the client's port.

    Raises `PermissionError` for whoever is not root: a vault hides its descriptors from its own user.
    """
    clients = {inode: remote for inode, local, remote in _connections() if local == port}
    return {clients[inode]: worker for worker in workers_below(pid) for inode in _sockets(worker) if inode in clients}


def ports_towards(pid: int, port: int) -> frozenset[int]:
    """Return the client's ports of the connections that a process has open to this one."""
    ours = {inode: local for inode, local, remote in _connections() if remote == port}
    return frozenset(ours[inode] for inode in _sockets(pid) if inode in ours)


def _connections() -> Iterator[tuple[str, int, int]]:
    """Yield inode, local port and remote port of each."""
    for line in (_PROC / "net" / "tcp").read_text().splitlines()[1:]:
        fields = line.split()
        local, remote = (int(address.partition(":")[2], 16) for address in fields[1:3])
        yield fields[9], local, remote


def _sockets(pid: int) -> Iterator[str]:
    for descriptor in (_PROC / str(pid) / "fd").iterdir():
        try:
            target = descriptor.readlink().name
        except FileNotFoundError:  # closed since it was listed
            continue
        if target.startswith("socket:["):
            yield target.removeprefix("socket:[").removesuffix("]")


def _command(process: str) -> bytes:
    try:
        return (_PROC / process / "cmdline").read_bytes()
    except FileNotFoundError:
        return b""
