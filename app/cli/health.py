"""`token-vault health`: whether a vault on this machine answers, for health checks that can only run a command."""

from __future__ import annotations

import click

from app.cli.failure import Wrong
from app.config.listening import load_listening_settings
from app.config.source import SettingsError
from app.server.liveness import Liveness, NotAliveError


@click.command()
@click.option("--host", help="Address to ask.  [default: HOST, 127.0.0.1]")
@click.option("--port", type=click.IntRange(1, 65535), help="Port to ask.  [default: PORT, 8080]")
def health(host: str | None, port: int | None) -> None:
    """Ask GET /healthz, over TLS where TLS_CERT_FILE is set. No secret is read or sent.

    With TLS_CLIENT_CA_FILE it completes the handshake only: it has no certificate to show.

    Exit codes: 0 the vault answers, 1 it does not, 2 a setting is wrong.
    """
    try:
        settings = load_listening_settings()
    except SettingsError as error:
        raise Wrong(str(error)) from None
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
