"""One keep-alive connection to the vault. Sending and receiving are apart, so several can wait at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any, Final, Protocol

from tests.support.process.home import Home
from tests.support.process.server import Server
from tests.support.stack.loopback import LOOPBACK

ANSWER_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    etag: str | None
    body: dict[str, Any]


class Address(Protocol):
    """A server, or what stands before several."""

    @property
    def home(self) -> Home: ...

    @property
    def port(self) -> int: ...


class Wire:
    """A client on one connection, which stays the same until the vault closes it."""

    def __init__(self, server: Address) -> None:
        self._connection = HTTPConnection(LOOPBACK, server.port, timeout=ANSWER_SECONDS)
        self._authorization = f"Bearer {server.home.service_key}"

    def ask(self, method: str, path: str, body: object = None, **conditions: str) -> None:
        """Send a request; `if_match="…"` is the header `If-Match`, and `authorization="…"` replaces the key."""
        headers = {"authorization": self._authorization, "content-type": "application/json"}
        headers |= {name.replace("_", "-"): value for name, value in conditions.items()}
        self._connection.request(method, path, None if body is None else json.dumps(body), headers)

    def receive(self) -> Answer:
        """Return the answer to the last request."""
        response = self._connection.getresponse()
        content = response.read()
        return Answer(response.status, response.headers["ETag"], json.loads(content) if content else {})

    def call(self, method: str, path: str, body: object = None, **conditions: str) -> Answer:
        self.ask(method, path, body, **conditions)
        return self.receive()

    @property
    def local_port(self) -> int:
        """The port of this end of the connection; opens it if needed."""
        if self._connection.sock is None:
            self._connection.connect()
        port: int = self._connection.sock.getsockname()[1]
        return port

    def close(self) -> None:
        self._connection.close()


@contextmanager
def wires(server: Server, count: int) -> Iterator[list[Wire]]:
    """Give unopened connections, and close each at the end."""
    opened = [Wire(server) for _ in range(count)]
    try:
        yield opened
    finally:
        for wire in opened:
            wire.close()


def token_path(user_id: object, provider: str = "canvas") -> str:
    return f"/v1/users/{user_id}/tokens/{provider}"
