"""`token-vault health`: check that a vault on this machine answers."""

from __future__ import annotations

import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

import click

from app.config.listening import is_host, load_listening_settings
from app.config.source import SettingsError

# --- Asks a vault on this machine whether it answers, as its settings say that it is reached.

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

    def require(self) -> None:
        """Return if it is alive, else raise `NotAliveError`, within `DEADLINE_SECONDS`.

        A thread asks, and is left behind where that takes longer: the system looks names up for as long as it likes,
        and the time-out of a socket begins anew with each byte.
        """
        found: SimpleQueue[Exception | None] = SimpleQueue()
        Thread(target=self._tell, args=(found,), daemon=True).start()
        try:
            error = found.get(timeout=DEADLINE_SECONDS)
        except Empty:
            raise NotAliveError("no answer in time") from None
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
                _require_ok(connection)
                return
            with _trusting_context(self).wrap_socket(connection) as secured:
                if not self.demands_certificate:
                    _require_ok(secured)


def _require_ok(connection: socket.socket) -> None:
    """Ask and read no more than the first line of the answer; raises `NotAliveError`."""
    connection.sendall(_REQUEST)
    line = b""
    while b"\n" not in line and len(line) < _LINE_BYTES and (more := connection.recv(_LINE_BYTES)):
        line += more
    status = _STATUS_LINE.match(line)
    if status is None:
        raise NotAliveError("what answers is no HTTP")
    if int(status[1]) != _OK:
        raise NotAliveError(f"/healthz answers {int(status[1])}")


def _trusting_context(liveness: Liveness) -> ssl.SSLContext:
    import ssl  # noqa: PLC0415  most ask without TLS, every few seconds

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if liveness.demands_certificate:
        # before 1.3 the server looks at the client's certificate before the handshake ends for the client
        context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


# --- `token-vault health`: whether a vault on this machine answers, for health checks that can only run a command.


class _Check(click.Command):
    """Ends with 0 or with 1: Docker keeps 2 for itself."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:  # noqa: ANN401  click's
        with _failing_with_1():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        with _failing_with_1():
            return super().invoke(ctx)


@click.command(cls=_Check)
@click.option("--host", help="Address to ask.  [default: HOST, 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to ask.  [default: PORT, 8080]")
def health(host: str | None, port: int | None) -> None:
    """Ask GET /healthz, over TLS where TLS_CERT_FILE is set. No secret is used or sent.

    With TLS_CLIENT_CA_FILE it completes the handshake only: it has no certificate to show.

    Exit codes: 0 the vault answers, 1 it does not, or the command or a setting is wrong.
    """
    if host and not is_host(host):
        raise click.ClickException("--host is neither an address nor a host's name")
    try:
        settings = load_listening_settings()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    liveness = Liveness(
        host=host or settings.host,
        port=port or settings.port,
        tls=settings.tls_cert_file is not None,
        demands_certificate=settings.tls_client_ca_file is not None,
    )
    try:
        liveness.require()
    except NotAliveError as error:
        raise click.ClickException(f"no vault answers at {liveness.host}, port {liveness.port}: {error}") from None
    click.echo("ok")


@contextmanager
def _failing_with_1() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        raise click.ClickException(error.format_message()) from None
    except (click.Abort, click.exceptions.Exit):  # click's own ways to stop
        raise
    except Exception as error:
        from app.cli.errors import stopped_by  # noqa: PLC0415  it needs the log

        raise click.ClickException(stopped_by(error).format_message()) from error
