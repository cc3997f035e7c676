"""`token-vault serve`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NoReturn

import click
import uvicorn

from app.cli.failure import Wrong, settings_or_stop
from app.composition import build_encryption, build_service_key_directory, demand_tracing
from app.config.settings import METRICS_FOLDER, Settings, SettingsError
from app.errors import StoreError
from app.observability.logging import configure_logging
from app.tokens.sqlite_repository import prepare_database

if TYPE_CHECKING:
    from collections.abc import Iterator

GRACEFUL_SHUTDOWN_SECONDS = 25
KEEP_ALIVE_SECONDS = 75  # above the 60 s of common load balancers, so that it is not us who cut an idle connection


@click.command()
@click.option("--host", help="Address to listen on.  [default: HOST, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [default: PORT, 8080]")
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True, help="Worker processes.")
def serve(host: str | None, port: int | None, workers: int) -> None:
    """Serve the API. SIGTERM stops accepting, finishes what is in flight, and exits."""
    settings = settings_or_stop()
    _demand_collaborators(settings)
    _demand_store(settings)
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    signal.signal(signal.SIGTERM, _exit_as_done)  # uvicorn raises it again once it has shut down
    try:
        with _metrics_folder(shared=settings.metrics and workers > 1):
            uvicorn.run(
                "app.main:create_app",
                factory=True,
                host=host or settings.host,
                port=settings.port if port is None else port,
                workers=workers,
                log_config=None,
                access_log=False,  # it would print paths and query strings
                proxy_headers=False,  # it would believe X-Forwarded-For
                server_header=False,
                ws="none",
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
            )
    except SystemExit as end:
        if end.code:  # uvicorn has its own numbers for a taken port and a failed start; its log line says which
            sys.exit(1)
        raise


@contextmanager
def _metrics_folder(*, shared: bool) -> Iterator[None]:
    """Give the workers a folder that they share for their metrics, and remove it after them.

    It goes into the environment, for the workers inherit that and prometheus-client looks there, and nowhere else, when
    it is imported. One process alone needs none, and must not meet one that somebody else has left there.
    """
    os.environ.pop(METRICS_FOLDER, None)
    if not shared:
        yield
        return
    try:
        folder = TemporaryDirectory(prefix="token-vault-metrics-", ignore_cleanup_errors=True)
    except OSError:
        message = "METRICS: no temporary folder for the workers' metrics can be made; set TMPDIR, or METRICS=false"
        raise Wrong(message) from None
    with folder as name:
        os.environ[METRICS_FOLDER] = name
        yield


def _exit_as_done(_signal: int, _frame: object) -> NoReturn:
    """End with 0: being told to stop, and stopping, is no failure."""
    sys.exit(0)


def _demand_collaborators(settings: Settings) -> None:
    """Stop with one line where SERVICE_KEYS or an AWS setting is broken, or an extra is missing.

    A broken file of service keys may be mended while we run.
    """
    try:
        build_service_key_directory(settings)
        build_encryption(settings).close()
        if settings.otel_traces:
            demand_tracing()
    except SettingsError as error:
        raise Wrong(str(error)) from None


def _demand_store(settings: Settings) -> None:
    """Stop with one line where the embedded store cannot work; a remote store may still come up later."""
    if settings.token_store == "sqlite":  # noqa: S105  a store's name
        try:
            prepare_database(settings.sqlite_path)
        except StoreError as error:
            message = f"SQLITE_PATH: {error.detail}"
            raise Wrong(message) from None
