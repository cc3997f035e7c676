"""`token-vault doctor`: check the installation and report what to fix."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import click

from app.audit.log_files import LogFiles
from app.audit.targets import is_stream
from app.cli.doctor_access import access_findings
from app.cli.doctor_finding import DoctorFinding, Severity
from app.cli.doctor_on_behalf_of import on_behalf_of_findings
from app.cli.doctor_postgres import server_findings
from app.cli.doctor_rows import row_findings
from app.cli.errors import settings_or_stop
from app.cli.output import AS_JSON, print_json
from app.composition.callers import build_service_key_directory
from app.composition.encryption import build_encryption
from app.composition.stores import opened_repository
from app.config.audit import audit_key
from app.config.listening import unencrypted_listener
from app.config.settings import ENV_FILE, Settings, SettingsError
from app.errors import VaultError
from app.observability.logging import configure_command_logging
from app.rewrap.legacy_window import WINDOW_WITHOUT_NEED, window_problem
from app.server.tls import TLS_WARNING_DAYS, Tls, TlsError

_COLOURS: Final = {Severity.OK: "green", Severity.WARNING: "yellow", Severity.FAILURE: "red"}
_TABLE_MISSING: Final = "If the table or a column is missing, run `token-vault migrate`."


@click.command()
@AS_JSON
def doctor(*, as_json: bool) -> None:
    """Check the settings, the service keys, encryption, KMS, the OAuth providers, the store, TLS and the audit trail.

    Prints one line for each finding: ok, warn or FAIL, the subject, and what to do about it. Changes nothing.

    Exit codes: 0 no finding is FAIL, 1 a finding is FAIL, 2 a setting is wrong.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the findings are the output
    failed = False
    found: list[dict[str, object]] = []
    for finding in _findings(settings):
        failed = failed or finding.severity is Severity.FAILURE
        if as_json:
            found.append({"severity": finding.severity.value, "subject": finding.subject, "text": finding.text})
            continue
        severity = click.style(finding.severity.ljust(4), fg=_COLOURS[finding.severity])
        click.echo(f"{severity}  {finding.subject.ljust(12)}  {finding.text}")
    if as_json:
        print_json(found)
    sys.exit(1 if failed else 0)


def _findings(settings: Settings) -> Iterator[DoctorFinding]:
    yield from _check_settings(settings)
    yield from _check_service_keys(settings)
    yield from on_behalf_of_findings(settings)
    yield _check_encryption(settings)
    if settings.kms_key_id is not None:
        from app.cli.doctor_kms import kms_findings  # noqa: PLC0415  imports boto3

        yield from kms_findings(settings)
    if settings.oauth_providers is not None or settings.oauth_providers_file is not None:
        from app.cli.doctor_providers import oauth_findings, spool_findings  # noqa: PLC0415  imports aiohttp

        yield from oauth_findings(settings)
        if settings.refresh_spool_dir is not None:
            yield from spool_findings(settings.refresh_spool_dir)
    store = _check_store(settings)
    yield store
    if settings.token_store == "postgres":  # noqa: S105  a store's name
        yield from server_findings(settings)
    if settings.token_store != "sqlite" and store.severity is Severity.OK:  # noqa: S105  a store's name
        yield from access_findings(settings)
    if store.severity is Severity.OK:
        yield from row_findings(settings)
    yield from _check_tls(settings)
    yield from _check_legacy_formats(settings)
    if settings.audit_log is not None:
        yield from audit_findings(settings, settings.audit_log)


def _check_settings(settings: Settings) -> Iterator[DoctorFinding]:
    subject = "settings"
    primary = "KMS" if settings.use_kms else f"key version {settings.encryption_key_version}"
    yield DoctorFinding.ok(subject, f"TOKEN_STORE={settings.token_store}, new tokens are encrypted with {primary}")
    unencrypted = unencrypted_listener(settings.host, tls=settings.tls_cert_file is not None)
    for warning in (*settings.warnings(), *([] if unencrypted is None else [unencrypted])):
        yield DoctorFinding.warning(subject, warning)
    if ENV_FILE.exists() and ENV_FILE.stat().st_mode & 0o077:
        text = f"other users of this machine can read {ENV_FILE}: chmod 600 {ENV_FILE}"
        yield DoctorFinding.warning(subject, text)


def _check_service_keys(settings: Settings) -> Iterator[DoctorFinding]:
    subject = "service keys"
    try:
        directory = build_service_key_directory(settings)
    except SettingsError as error:
        yield DoctorFinding.failure(subject, str(error))
        return
    if directory.problem is not None:
        yield DoctorFinding.failure(subject, f"{directory.problem}; until this is fixed none of its keys is valid")
        return
    alive = directory.alive_services()
    if alive:
        yield DoctorFinding.ok(subject, f"{len(alive)} valid: {', '.join(sorted(set(alive)))}")
    else:
        yield DoctorFinding.warning(subject, "no key is valid; create one with `token-vault service-key create`")
    if endless := directory.endless_keys():
        yield DoctorFinding.warning(subject, endless)


def _check_encryption(settings: Settings) -> DoctorFinding:
    subject = "encryption"
    try:
        encryption = build_encryption(settings)
    except SettingsError as error:
        return DoctorFinding.failure(subject, str(error))
    with closing(encryption):
        try:
            encryption.service.self_test()
        except VaultError as error:
            return DoctorFinding.failure(subject, f"the self-test failed: {error.detail}")
        scheme = encryption.service.primary_scheme
        return DoctorFinding.ok(subject, f"{scheme} encrypts and decrypts, and refuses another user's ciphertext")


def _check_store(settings: Settings) -> DoctorFinding:
    subject = "store"
    if settings.token_store == "sqlite" and not settings.sqlite_path.exists():  # noqa: S105  a store's name
        return DoctorFinding.ok(subject, f"{settings.sqlite_path} does not exist yet; the first start creates it")
    try:
        asyncio.run(_require_store(settings))
    except VaultError as error:
        advice = f" {_TABLE_MISSING}" if settings.token_store != "sqlite" else ""  # noqa: S105  a store's name
        return DoctorFinding.failure(subject, f"{error.code}: {error.detail}.{advice}")
    except SettingsError as error:
        return DoctorFinding.failure(subject, str(error))
    return DoctorFinding.ok(subject, "oauth_tokens has every column, and its rows are visible")


async def _require_store(settings: Settings) -> None:
    async with opened_repository(settings) as tokens:
        await tokens.check()


def _check_legacy_formats(settings: Settings) -> Iterator[DoctorFinding]:
    """Compare ALLOW_LEGACY_FORMATS with the rows, unless the store cannot be read, which is a finding of its own."""
    try:
        problem = asyncio.run(_legacy_window(settings))
    except (VaultError, SettingsError):
        return
    if problem is not None:
        yield DoctorFinding.warning("settings", problem)


async def _legacy_window(settings: Settings) -> str | None:
    if settings.token_store == "sqlite" and not settings.sqlite_path.exists():  # noqa: S105  a store's name
        return WINDOW_WITHOUT_NEED if settings.allow_legacy_formats else None
    async with opened_repository(settings) as tokens:
        return await window_problem(tokens, allowed=settings.allow_legacy_formats)


def _check_tls(settings: Settings) -> Iterator[DoctorFinding]:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return
    subject = "TLS"
    tls = Tls(certificate=settings.tls_cert_file, key=settings.tls_key_file, client_ca=settings.tls_client_ca_file)
    try:
        expires_at = tls.check()
    except TlsError as error:
        yield DoctorFinding.failure(subject, str(error))
        return
    left = expires_at - datetime.now(UTC)
    text = f"the certificate expires on {expires_at:%Y-%m-%d}"
    if left < timedelta(0):
        yield DoctorFinding.failure(subject, f"the certificate expired on {expires_at:%Y-%m-%d}; renew it")
    elif left < timedelta(days=TLS_WARNING_DAYS):
        yield DoctorFinding.warning(subject, f"{text}, in {left.days} days: renew it, and restart the vault")
    else:
        yield DoctorFinding.ok(subject, text)


def audit_findings(settings: Settings, audit_log: str) -> Iterator[DoctorFinding]:
    subject = "audit"
    signed = "" if settings.audit_key is None else f"signed with key {audit_key(settings.audit_key).name}"
    directory = Path(audit_log).parent
    if is_stream(audit_log):
        yield DoctorFinding.ok(subject, f"written to a stream, {signed}; the reader of the stream must keep it")
        return
    if not directory.exists():
        yield DoctorFinding.ok(subject, f"{directory} does not exist yet; the first start creates it")
        return
    try:
        LogFiles(Path(audit_log)).require_writable()
    except OSError as error:
        yield DoctorFinding.failure(subject, f"AUDIT_LOG: {directory} cannot be written: {error.strerror}")
        return
    yield DoctorFinding.ok(subject, f"{directory} can be written, {signed}")
    if directory.stat().st_mode & 0o022:
        text = f"other users of this machine can write to {directory}: chmod 700 {directory}"
        yield DoctorFinding.warning(subject, text)
