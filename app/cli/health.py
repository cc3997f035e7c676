"""`token-vault health`: check that the vault on this machine answers."""

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

DEADLINE_SECONDS: Final = 3.0
_ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  a server listens on it, no client calls it
_REQUEST: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r]")
_LINE_BYTES: Final = 128  # a longer line is no status line
_OK: Final = 200


class _HealthCommand(click.Command):
    """Uses exit codes 0 and 1 only, because Docker reserves 2."""

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:  # noqa: ANN401  click's
        with _failing_with_1():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        with _failing_with_1():
            return super().invoke(ctx)


@click.command(cls=_HealthCommand)
@click.option("--host", metavar="ADDRESS", help="Address to ask.  [default: the setting HOST, else 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Port to ask.  [default: the setting PORT, else 8080]",
)
def health(host: str | None, port: int | None) -> None:
    """Send GET /healthz to the vault on this machine, over TLS if TLS_CERT_FILE is set.

    For health checks that can only run a command. Reads and sends no secret. If TLS_CLIENT_CA_FILE is set, a completed
    TLS handshake is enough, because this command has no client certificate.

    Exit codes: 0 the vault answers, 1 it does not, or an option or a setting is wrong.
    """
    if host and not is_host(host):
        raise click.ClickException("--host is neither an address nor a host name")
    try:
        settings = load_listening_settings()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None
    probe = LivenessProbe(
        host=host or settings.host,
        port=port or settings.port,
        tls=settings.tls_cert_file is not None,
        client_certificate=settings.tls_client_ca_file is not None,
    )
    try:
        probe.run()
    except NotAliveError as error:
        raise click.ClickException(f"no vault answers at {probe.host}, port {probe.port}: {error}") from None
    click.echo("ok")


class NotAliveError(Exception):
    """The vault did not answer; the text says in a few words what happened instead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LivenessProbe:
    """A request to `/healthz` of one process.

    The server's certificate is not verified: nothing secret is sent, it holds the vault's public name, and an expired
    one is no reason to restart a process. If the server requires a `client_certificate`, it refuses this client right
    after the handshake, so the handshake is the answer.
    """

    host: str
    port: int
    tls: bool = False
    client_certificate: bool = False

    def run(self) -> None:
        """Return once the vault has answered; raise `NotAliveError` after `DEADLINE_SECONDS` at the latest.

        The request runs in a thread that is left behind at the deadline: a name lookup has no time-out, and that of a
        socket restarts with each byte.
        """
        result: SimpleQueue[Exception | None] = SimpleQueue()
        Thread(target=self._put_result, args=(result,), daemon=True).start()
        try:
            error = result.get(timeout=DEADLINE_SECONDS)
        except Empty:
            raise NotAliveError("no answer in time") from None
        if error is not None:
            raise error

    def _put_result(self, result: SimpleQueue[Exception | None]) -> None:
        try:
            self._request()
        except OSError as error:
            result.put(NotAliveError(error.strerror or "no answer in time"))
        except Exception as error:  # noqa: BLE001  raised again in the waiting thread
            result.put(error)
        else:
            result.put(None)

    def _request(self) -> None:
        address = _ANY_ADDRESS.get(self.host, self.host), self.port
        with socket.create_connection(address, DEADLINE_SECONDS) as connection:
            if not self.tls:
                _require_ok(connection)
                return
            with self._unverified_context().wrap_socket(connection) as secured:
                if not self.client_certificate:
                    _require_ok(secured)

    def _unverified_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if self.client_certificate:
            # before TLS 1.3 the server checks the client's certificate before the handshake ends for the client
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context


def _require_ok(connection: socket.socket) -> None:
    """Send the request and read no more than the status line; raises `NotAliveError`."""
    connection.sendall(_REQUEST)
    line = b""
    while b"\n" not in line and len(line) < _LINE_BYTES and (more := connection.recv(_LINE_BYTES)):
        line += more
    status = _STATUS_LINE.match(line)
    if status is None:
        raise NotAliveError("the answer is not HTTP")
    if int(status[1]) != _OK:
        raise NotAliveError(f"/healthz answers {int(status[1])}")


@contextmanager
def _failing_with_1() -> Iterator[None]:
    try:
        yield
    except click.ClickException as error:
        raise click.ClickException(error.format_message()) from None
    except (click.Abort, click.exceptions.Exit):  # not errors
        raise
    except Exception as error:
        from app.cli.unexpected_errors import reported  # noqa: PLC0415  imports the log, which slows every start

        raise click.ClickException(reported(error).format_message()) from error
