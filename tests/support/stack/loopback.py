"""Loopback: free ports, clients over plain HTTP, and the process at each end of a TCP connection."""

import random
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LOOPBACK: Final = "127.0.0.1"

# What a client over plain HTTP gets as `verify`. Without it httpx reads every authority that the machine trusts, anew
# for each client, which takes longer than most requests of a test.
PLAIN_HTTP: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # trusts no authority

# Below the ports that Linux (from 32768) and macOS (from 49152) give to outgoing connections. A port of theirs could be
# taken by any client while a part is stopped on purpose, and a client that retries can even connect to itself.
_CANDIDATES: Final = range(20_000, 32_000)
_PROC: Final = Path("/proc")
_LISTEN: Final = "0A"  # in /proc/net/tcp


def free_port() -> int:
    """Return a port that nothing listens on now, and that no outgoing connection will take."""
    for port in random.sample(_CANDIDATES, k=200):
        with socket.socket() as candidate:
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError("found no free loopback port")


def workers_below(pid: int) -> frozenset[int]:
    """Return the process ids of a vault's workers, or the process itself if it has none."""
    tasks = (_PROC / str(pid) / "task").iterdir()
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    # the resource tracker of `multiprocessing` is a child too
    workers = {int(child) for child in children if b"resource_tracker" not in _command(child)}
    return frozenset(workers or {pid})


def listens(port: int) -> bool:
    """Whether a process listens on this port. A connection would tell too, but be one more in its log."""
    lines = (line for table in ("tcp", "tcp6") for line in (_PROC / "net" / table).read_text().splitlines()[1:])
    return any(fields[1].endswith(f":{port:04X}") and fields[3] == _LISTEN for fields in map(str.split, lines))


def accepted(pid: int, port: int) -> dict[int, int]:
    """Map the client's port of each connection that a vault has accepted on this port to the worker that has it.

    Raises `PermissionError` unless run by root: a vault hides its descriptors from its own user.
    """
    clients = {inode: remote for inode, local, remote in _connections() if local == port}
    return {clients[inode]: worker for worker in workers_below(pid) for inode in _sockets(worker) if inode in clients}


def ports_towards(pid: int, port: int) -> frozenset[int]:
    """Return the client's ports of the connections that a process has open to this port."""
    ours = {inode: local for inode, local, remote in _connections() if remote == port}
    return frozenset(ours[inode] for inode in _sockets(pid) if inode in ours)


def _connections() -> Iterator[tuple[str, int, int]]:
    """Yield inode, local port and remote port of each TCP connection over IPv4."""
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
