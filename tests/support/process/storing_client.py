"""A client that stores and rotates in a loop and records the acknowledged writes."""

from __future__ import annotations

import threading
from contextlib import closing
from http.client import HTTPException
from uuid import UUID, uuid4

from tests.support.process.server import Server
from tests.support.process.wire import Wire, token_path


def secret_of(user_id: UUID, version: int) -> str:
    """Return the secret of a user's first or second write; it is unique, because each token has one writer."""
    return f"secret of version {version} for {user_id}"


class StoringClient:
    """Write from a thread until the server is gone; every third write rotates the newest token."""

    def __init__(self, server: Server) -> None:
        self.acknowledged: dict[UUID, int] = {}
        self.unexpected: list[int] = []
        self._wire = Wire(server)
        self._thread = threading.Thread(target=self._write_until_the_end, name="storing-client")
        self._thread.start()

    @property
    def acknowledgements(self) -> int:
        # `list` copies the values in one step, while the thread keeps writing
        return sum(list(self.acknowledged.values()))

    def join(self) -> None:
        self._thread.join()

    def _write_until_the_end(self) -> None:
        with closing(self._wire):
            try:
                while not self.unexpected:
                    user_id = uuid4()
                    self._write(user_id, version=1)
                    if len(self.acknowledged) % 2 == 0:
                        self._write(user_id, version=2)
            except (OSError, HTTPException):
                return  # the server was killed

    def _write(self, user_id: UUID, *, version: int) -> None:
        method, action, expected = ("PUT", "", 201) if version == 1 else ("POST", "/rotate", 200)
        body = {"access_token": secret_of(user_id, version)}
        answer = self._wire.call(method, token_path(user_id) + action, body)
        if answer.status == expected:
            self.acknowledged[user_id] = version
        else:
            self.unexpected.append(answer.status)
