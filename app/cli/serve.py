"""`token-vault serve`."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import click
import structlog

from app.audit.log_files import LogFiles
from app.audit.targets import is_stream
from app.cli.errors import UsageError, settings_or_stop
from app.composition.callers import build_service_key_directory
from app.composition.encryption import build_encryption
from app.composition.providers import build_provider_registry, build_refresh_spool
from app.composition.tracing import require_tracing
from app.config.certificate_authorities import client_ssl_context
from app.config.listening import is_host, unencrypted_listener
from app.config.settings import METRICS_FOLDER, Settings, SettingsError
from app.errors import StoreError
from app.observability.logging import configure_logging
from app.server.hardening import raise_open_file_limit, warn_about_root
from app.server.http_limits import LimitedHttp
from app.server.listeners import require_free, run_one_process
from app.server.tls import TLS_WARNING_DAYS, Tls, TlsError
from app.server.workers import supervise
from app.stores.sqlite.database import prepare_database

GRACEFUL_SHUTDOWN_SECONDS = 25
KEEP_ALIVE_SECONDS = int(LimitedHttp.limits.idle_seconds)
_FILE = click.Path(path_type=Path)
_log = structlog.get_logger()


@click.command()
@click.option("--host", metavar="ADDRESS", help="Address to listen on.  [default: the setting HOST, else 127.0.0.1]")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    help="Port to listen on.  [default: the setting PORT, else 8080]",
)
@click.option(
    "--workers", type=click.IntRange(1, 64), metavar="N", default=1, show_default=True, help="Worker processes."
)
@click.option("--tls-cert", type=_FILE, metavar="FILE", help="Certificate and chain in PEM.  [default: TLS_CERT_FILE]")
@click.option(
    "--tls-key", type=_FILE, metavar="FILE", help="Private key in PEM, without a password.  [default: TLS_KEY_FILE]"
)
@click.option(
    "--tls-client-ca",
    type=_FILE,
    metavar="FILE",
    help="CA certificates in PEM; callers must present a certificate from one of them.  [default: TLS_CLIENT_CA_FILE]",
)
def serve(
    *,
    host: str | None,
    port: int | None,
    workers: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
) -> None:
    """Serve the API. On SIGTERM, serve for SHUTDOWN_DRAIN_SECONDS more, refuse new connections, finish the requests in
    flight, and exit.

    Exit codes: 0 stopped by SIGTERM, 1 the start failed (the log says why), 2 an option or a setting is wrong, or a
    port is taken.
    """
    if host and not is_host(host):
        raise UsageError("--host is neither an address nor a host name")
    settings = settings_or_stop()
    host = host or settings.host
    port = settings.port if port is None else port
    if port == settings.metrics_port:
        raise UsageError("METRICS_PORT is the port of the API; the second listener needs a port of its own")
    tls = _tls(
        tls_cert or settings.tls_cert_file,
        tls_key or settings.tls_key_file,
        tls_client_ca or settings.tls_client_ca_file,
    )
    expires_at = None if tls is None else _require_tls(tls)
    _require_collaborators(settings)
    _require_store(settings)
    _require_audit(settings)
    _require_ports(host, {"PORT": port, "METRICS_PORT": settings.metrics_port})
    configure_logging(level=settings.log_level, log_format=settings.log_format)
    _warn_about(expires_at)
    unencrypted = unencrypted_listener(host, tls=tls is not None)
    if unencrypted is not None:
        _log.warning("setting_is_weak", reason=unencrypted)
    warn_about_root()
    raise_open_file_limit()
    signal.signal(signal.SIGTERM, _exit_successfully)  # uvicorn raises the signal again after its shutdown
    try:
        with _metrics_folder(shared=settings.metrics and workers > 1):
            run = supervise if workers > 1 else run_one_process
            run(
                "app.hardened_app:create_hardened_app",
                factory=True,
                http="app.server.http_limits:LimitedHttp",
                loop="uvloop",
                host=host,
                port=port,
                metrics_port=settings.metrics_port,
                workers=workers,
                log_config=None,
                access_log=False,  # it would print paths and query strings
                proxy_headers=False,  # it would believe X-Forwarded-For
                server_header=False,
                ws="none",
                reset_contextvars=True,  # a pipelined request starts within the one before it
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_SECONDS,
                **({} if tls is None else tls.uvicorn_options()),
            )
    except SystemExit as end:
        if end.code:  # uvicorn has several codes; its log line says what failed
            sys.exit(1)
        raise


@contextmanager
def _metrics_folder(*, shared: bool) -> Iterator[None]:
    """Create the folder that workers share for their metrics, and remove it at the end.

    It is passed in the environment, which workers inherit, because prometheus-client reads it only there, on import.
    A single process needs no folder, so an inherited variable is removed.
    """
    os.environ.pop(METRICS_FOLDER, None)
    if not shared:
        yield
        return
    try:
        folder = TemporaryDirectory(prefix="token-vault-metrics-", ignore_cleanup_errors=True)
    except OSError:
        raise UsageError(
            "METRICS: no temporary folder for the workers' metrics can be created; set TMPDIR, or METRICS=false"
        ) from None
    with folder as name:
        os.environ[METRICS_FOLDER] = name
        yield


def _exit_successfully(_signal: int, _frame: object) -> NoReturn:
    """Exit with code 0: stopping on SIGTERM is no failure."""
    sys.exit(0)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> Tls | None:
    if certificate is not None and key is not None:
        return Tls(certificate=certificate, key=key, client_ca=client_ca)
    if certificate is None and key is None and client_ca is None:
        return None
    raise UsageError(
        "TLS needs both a certificate and its key: --tls-cert and --tls-key, or TLS_CERT_FILE and TLS_KEY_FILE"
    )


def _require_tls(tls: Tls) -> datetime:
    """Return when the certificate expires, or stop with one line that names the wrong file."""
    try:
        return tls.check()
    except TlsError as error:
        raise UsageError(str(error)) from None


def _warn_about(expires_at: datetime | None) -> None:
    if expires_at is not None and expires_at < datetime.now(UTC) + timedelta(days=TLS_WARNING_DAYS):
        _log.warning("tls_certificate_expires", expires_at=expires_at.isoformat())


def _require_collaborators(settings: Settings) -> None:
    """Stop with one line if SERVICE_KEYS, a setting of OAuth or AWS is wrong, or an extra is missing.

    A wrong file of service keys does not stop the start, because it is read again when it changes.
    """
    try:
        build_service_key_directory(settings)
        if build_provider_registry(settings) is not None:
            build_refresh_spool(settings)
        build_encryption(settings).close()
        if settings.otel_traces:
            require_tracing()
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _require_store(settings: Settings) -> None:
    """Stop with one line if the store cannot work with these settings; a remote one that is down may come back."""
    try:
        if settings.token_store == "sqlite":  # noqa: S105  a store's name
            prepare_database(settings.sqlite_path)
        else:
            client_ssl_context()
    except StoreError as error:
        raise UsageError(f"SQLITE_PATH: {error.detail}") from None
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _require_audit(settings: Settings) -> None:
    """Stop with one line if AUDIT_LOG cannot be written. A full disk does not stop the start: it may be freed later."""
    if settings.audit_log is None or is_stream(settings.audit_log):
        return
    try:
        LogFiles(Path(settings.audit_log)).require_writable()
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            return
        raise UsageError(f"AUDIT_LOG: {Path(settings.audit_log).parent} cannot be written: {error.strerror}") from None


def _require_ports(host: str, ports: Mapping[str, int | None]) -> None:
    """Stop with one line that names the setting if an address cannot be opened."""
    for name, port in ports.items():
        if port is None:
            continue
        try:
            require_free(host, port)
        except OSError as error:
            raise UsageError(f"{name}: {host} port {port} cannot be opened: {error.strerror}") from None
