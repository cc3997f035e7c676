"""Asks a vault on this machine whether it answers, as its settings say that it is reached."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

DEADLINE_SECONDS: Final = 3.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  what a server is told, and nobody can call
_REQUEST: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LINE_BYTES: Final = 128  # of a status line; whatever is longer is none
_OK: Final = 200


class NotAliveError(Exception):
    """Says in a few words what was met instead of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """One process's `/healthz`.

    Certificates are not looked at: nothing secret is sent, they name the vault by its public name, and one that has
    expired is no reason to restart a process. Where the vault demands the client's, whoever has none is refused right
    after the handshake, so the handshake is the answer.
    """

    host: str
    port: int
    tls: bool = False
    demands_certificate: bool = False

    def demand(self) -> None:
        """Return if it is alive, else raise `NotAliveError`, within `DEADLINE_SECONDS`.

        A thread asks, and is left behind where that takes longer: the system looks names up for as long as it likes,
        and the time-out of a socket begins anew with each byte.
        """
        found: SimpleQueue[Exception | None] = SimpleQueue()
        Thread(target=self._tell, args=(found,), daemon=True).start()
        try:
            error = found.get(timeout=DEADLINE_SECONDS)
        except Empty:
            message = "no answer in time"
            raise NotAliveError(message) from None
        if error is not None:
            raise error

    def _tell(self, found: SimpleQueue[Exception | None]) -> None:
        try:
            self._ask()
        except OSError as error:
            found.put(NotAliveError(error.strerror or "no answer in time"))
        except Exception as error:  # noqa: BLE001  who waits must hear of it
            found.put(error)
        else:
            found.put(None)

    def _ask(self) -> None:
        address = _ANY_ADDRESS.get(self.host, self.host), self.port
        with socket.create_connection(address, DEADLINE_SECONDS) as connection:
            if not self.tls:
                _demand_ok(connection)
                return
            with _trusting_context(self).wrap_socket(connection) as secured:
                if not self.demands_certificate:
                    _demand_ok(secured)


def _demand_ok(connection: socket.socket) -> None:
    """Ask and read no more than the first line of the answer; raises `NotAliveError`."""
    connection.sendall(_REQUEST)
    line = b""
    while b"\n" not in line and len(line) < _LINE_BYTES and (more := connection.recv(_LINE_BYTES)):
        line += more
    status = _STATUS_LINE.match(line)
    if status is None:
        message = "what answers is no HTTP"
        raise NotAliveError(message)
    if int(status[1]) != _OK:
        message = f"/healthz answers {int(status[1])}"
        raise NotAliveError(message)


def _trusting_context(liveness: Liveness) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415  most ask without TLS, every few seconds

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if liveness.demands_certificate:
        # before 1.3 the server looks at the client's certificate before the handshake ends for the client
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context
