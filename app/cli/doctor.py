"""`token-vault doctor`: what works and what does not, in words."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from app.audit.log_files import LogFiles
from app.audit.targets import is_stream
from app.cli.errors import settings_or_stop
from app.composition import build_encryption, build_service_key_directory, open_repository
from app.config.audit import audit_key
from app.config.settings import ENV_FILE, Settings, SettingsError
from app.errors import VaultError
from app.observability.logging import configure_command_logging
from app.server.tls import TLS_WARNING_DAYS, Tls, TlsError

Finding = tuple[str, str, str]


OK, WARNING, FAILURE = "ok", "warn", "FAIL"
_TABLE_MISSING = "Run migrations/ on the database if the table or its columns are missing."


@click.command()
def doctor() -> None:
    """Check settings, service keys, encryption and the store, and say what to do about each finding.

    Exit codes: 0 all is well or only warned about, 1 something failed, 2 a setting is wrong.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the findings below say it all
    failed = False
    for state, subject, words in _findings(settings):
        colour = {OK: "green", WARNING: "yellow", FAILURE: "red"}[state]
        click.echo(f"{click.style(state.ljust(4), fg=colour)}  {subject.ljust(12)}  {words}")
        failed = failed or state == FAILURE
    sys.exit(1 if failed else 0)


def _findings(settings: Settings) -> Iterator[Finding]:
    yield from _check_settings(settings)
    yield _check_service_keys(settings)
    yield _check_encryption(settings)
    if settings.kms_key_id is not None:
        from app.cli.doctor_kms import kms_findings  # noqa: PLC0415  boto3 is paid for only where it is used

        yield from kms_findings(settings)
    yield _check_store(settings)
    yield from _check_tls(settings)
    if settings.audit_log is not None:
        yield from audit_findings(settings, settings.audit_log)


def _check_tls(settings: Settings) -> Iterator[Finding]:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return
    tls = Tls(certificate=settings.tls_cert_file, key=settings.tls_key_file, client_ca=settings.tls_client_ca_file)
    try:
        expires_at = tls.check()
    except TlsError as error:
        yield FAILURE, "TLS", str(error)
        return
    left = expires_at - datetime.now(UTC)
    words = f"the certificate expires on {expires_at:%Y-%m-%d}"
    if left < timedelta(0):
        yield FAILURE, "TLS", f"the certificate expired on {expires_at:%Y-%m-%d}; no caller accepts it any more"
    elif left < timedelta(days=TLS_WARNING_DAYS):
        yield WARNING, "TLS", f"{words}, in {left.days} days: renew it, and restart the vault"
    else:
        yield OK, "TLS", words


def _check_settings(settings: Settings) -> Iterator[Finding]:
    writer = "KMS" if settings.use_kms else f"key version {settings.encryption_key_version}"
    yield OK, "settings", f"TOKEN_STORE={settings.token_store}, {writer} writes"
    for warning in settings.warnings():
        yield WARNING, "settings", warning
    if ENV_FILE.exists() and ENV_FILE.stat().st_mode & 0o077:
        yield WARNING, "settings", f"{ENV_FILE} can be read by other users of this machine: chmod 600 {ENV_FILE}"


def _check_service_keys(settings: Settings) -> Finding:
    try:
        directory = build_service_key_directory(settings)
    except SettingsError as error:
        return FAILURE, "service keys", str(error)
    if directory.problem is not None:
        return FAILURE, "service keys", f"{directory.problem}; none of its keys is valid until that is mended"
    alive = directory.alive_services()
    if not alive:
        return WARNING, "service keys", "none is alive; make one with `token-vault service-key create`"
    return OK, "service keys", f"{len(alive)} alive: {', '.join(sorted(set(alive)))}"


def _check_encryption(settings: Settings) -> Finding:
    try:
        encryption = build_encryption(settings)
    except SettingsError as error:
        return FAILURE, "encryption", str(error)
    with closing(encryption):
        try:
            encryption.service.self_test()
        except VaultError as error:
            return FAILURE, "encryption", f"the self-test failed: {error.detail}"
        return OK, "encryption", f"{encryption.service.primary_scheme} seals and opens, and refuses another user"


def _check_store(settings: Settings) -> Finding:
    if settings.token_store == "sqlite" and not settings.sqlite_path.exists():  # noqa: S105  a store's name
        return OK, "store", f"{settings.sqlite_path} does not exist yet; the first start creates it"
    try:
        asyncio.run(_probe(settings))
    except VaultError as error:
        advice = f" {_TABLE_MISSING}" if settings.token_store == "supabase" else ""  # noqa: S105  a store's name
        return FAILURE, "store", f"{error.code}: {error.detail}.{advice}"
    except SettingsError as error:
        return FAILURE, "store", str(error)
    return OK, "store", "oauth_tokens is there, with every column, and its rows are visible"


def audit_findings(settings: Settings, audit_log: str) -> Iterator[Finding]:
    signed = "" if settings.audit_key is None else f"signed with key {audit_key(settings.audit_key).name}"
    directory = Path(audit_log).parent
    if is_stream(audit_log):
        yield OK, "audit", f"goes to a stream, {signed}; what reads it has to keep it"
        return
    if not directory.exists():
        yield OK, "audit", f"{directory} does not exist yet; the first start creates it"
        return
    try:
        LogFiles(Path(audit_log)).require_writable()
    except OSError as error:
        yield FAILURE, "audit", f"AUDIT_LOG: {directory} cannot be written: {error.strerror}"
        return
    yield OK, "audit", f"{directory} can be written, {signed}"
    if directory.stat().st_mode & 0o022:
        yield WARNING, "audit", f"{directory} can be written by other users of this machine: chmod 700 {directory}"


async def _probe(settings: Settings) -> None:
    tokens = await open_repository(settings)
    try:
        await tokens.check()
    finally:
        await tokens.close()
