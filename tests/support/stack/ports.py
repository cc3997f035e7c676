"""Loopback ports that can be given up and taken back."""

import random
import socket

LOOPBACK = "127.0.0.1"

# Below where Linux (32768) and macOS (49152) take the ports of outgoing
# connections. A port from in there could be taken by any client while a part is
# deliberately down, and a client that keeps trying can even connect to itself.
_CANDIDATES = range(20_000, 32_000)


def free_port() -> int:
    """A port that nothing listens on now, and no outgoing connection will take."""
    for port in random.sample(_CANDIDATES, k=200):
        with socket.socket() as candidate:
            try:
                candidate.bind((LOOPBACK, port))
            except OSError:
                continue
            return port
    raise RuntimeError("found no free loopback port")
