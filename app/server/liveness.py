"""Asks a vault on this machine whether it answers, as its settings say that it is reached."""

from __future__ import annotations

import socket
import ssl
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Final

ANSWER_SECONDS: Final = 2.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  what a server is told, and nobody can call


class NotAliveError(Exception):
    """Says in a few words what was met instead of an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liveness:
    """One process's `/healthz`; each step may take `ANSWER_SECONDS`.

    Certificates are not looked at: nothing secret is sent, they name the vault by its public name, and one that has
    expired is no reason to restart a process. Where the vault demands the client's, whoever has none is refused right
    after the handshake, so the handshake is the answer.
    """

    host: str
    port: int
    tls: bool = False
    demands_certificate: bool = False

    def demand(self) -> None:
        """Return if it is alive, else raise `NotAliveError`."""
        try:
            if self.demands_certificate:
                self._shake_hands()
            else:
                self._ask()
        except OSError as error:
            raise NotAliveError(error.strerror or "no answer in time") from None
        except HTTPException:
            message = "what answers is no HTTP"
            raise NotAliveError(message) from None

    @property
    def _address(self) -> str:
        return _ANY_ADDRESS.get(self.host, self.host)

    def _ask(self) -> None:
        if self.tls:
            connection: HTTPConnection = HTTPSConnection(
                self._address, self.port, timeout=ANSWER_SECONDS, context=_trusting_context()
            )
        else:
            connection = HTTPConnection(self._address, self.port, timeout=ANSWER_SECONDS)
        with closing(connection):
            connection.request("GET", "/healthz")
            status = connection.getresponse().status
        if status != HTTPStatus.OK:
            message = f"/healthz answers {status}"
            raise NotAliveError(message)

    def _shake_hands(self) -> None:
        context = _trusting_context()
        # before 1.3 the server looks at the client's certificate before the handshake ends for the client
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        with (
            socket.create_connection((self._address, self.port), ANSWER_SECONDS) as connection,
            context.wrap_socket(connection),
        ):
            pass


def _trusting_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
