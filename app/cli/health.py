"""`token-vault health`: whether a vault on this machine answers, for health checks that can only run a command."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from app.config.listening import is_host, load_listening_settings
from app.config.source import SettingsError
from app.server.liveness import Liveness, NotAliveError

if TYPE_CHECKING:
    from collections.abc import Iterator


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
        message = "--host is neither an address nor a host's name"
        raise click.ClickException(message)
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
        liveness.demand()
    except NotAliveError as error:
        message = f"no vault answers at {liveness.host}, port {liveness.port}: {error}"
        raise click.ClickException(message) from None
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
        from app.cli.defect import stopped_by  # noqa: PLC0415  it needs the log

        raise click.ClickException(stopped_by(error).format_message()) from error
