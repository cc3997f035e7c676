"""`token-vault service-key`: who may call."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import click

from app.callers.key_file import add_key, read_key_file, revoke_keys
from app.callers.service_keys import KeyListError, Scope, ServiceKey, generate_key, hash_key, parse_key_list
from app.cli.errors import UsageError, settings_or_stop
from app.tokens.models import SLUG_PATTERN

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")
_SHORTEST_PREFIX = 8


@click.group("service-key")
def service_key() -> None:
    """Keys that calling services present. The file SERVICE_KEYS_FILE holds their hashes."""


@service_key.command()
@click.option("--service", required=True, help="Name of the calling service, like pulseplan-api.")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What it may do; give it several times.",
)
@click.option("--provider", "providers", multiple=True, help="Limit it to this provider; give it several times.")
@click.option("--expires", help="When it ends: days from now like 90d, or a time like 2027-03-01T00:00:00Z.")
def create(service: str, scopes: tuple[str, ...], providers: tuple[str, ...], expires: str | None) -> None:
    """Make a key, add its hash to the file, and print the key once."""
    path = _key_file()
    if not _SERVICE.fullmatch(service):
        raise UsageError("--service takes letters, digits, dot, dash and underscore, 64 at most")
    for provider in providers:
        if not re.fullmatch(SLUG_PATTERN, provider):
            raise UsageError(f"--provider must match {SLUG_PATTERN}")
    key = generate_key()
    entry = ServiceKey(
        service=service,
        sha256=hash_key(key),
        scopes=frozenset(Scope(scope) for scope in scopes),
        providers=frozenset(providers) or None,
        expires_at=None if expires is None else _expiry(expires),
    )
    try:
        add_key(path, entry)
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None
    click.echo(f"Added {entry.fingerprint} for {service} to {path}. The key is shown only this once:", err=True)
    click.echo(key)


@service_key.command("list")
def list_keys() -> None:
    """List the keys by fingerprint, without anything that could be presented."""
    settings = settings_or_stop()
    keys = _read(_key_file()) if settings.service_keys_file else []
    if settings.service_keys is not None:
        try:
            keys += parse_key_list(settings.service_keys.get_secret_value())
        except KeyListError as error:
            raise UsageError(f"SERVICE_KEYS: {error}") from None
    if not keys:
        click.echo("No service keys: every /v1 call is answered with 401.")
        return
    rows = [("FINGERPRINT", "SERVICE", "STATE", "EXPIRES", "PROVIDERS", "SCOPES")]
    rows += [_describe(key) for key in keys]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


@service_key.command()
@click.argument("fingerprint", required=False)
@click.option("--service", help="Revoke every key of this service.")
def revoke(fingerprint: str | None, service: str | None) -> None:
    """Remove the key with this FINGERPRINT, as `list` shows it, from the file. Running replicas follow in seconds."""
    if (fingerprint is None) == (service is None):
        raise UsageError("give a fingerprint or --service, one of the two")
    if fingerprint is not None and not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST_PREFIX},64}}", fingerprint):
        raise UsageError(f"a fingerprint is {_SHORTEST_PREFIX} or more lower-case hex digits")
    path = _key_file()
    if fingerprint is not None and len({k.sha256 for k in _read(path) if k.sha256.startswith(fingerprint)}) > 1:
        raise UsageError("several keys have this fingerprint; give more of their digits")

    def doomed(key: ServiceKey) -> bool:
        return key.service == service if fingerprint is None else key.sha256.startswith(fingerprint)

    try:
        removed = revoke_keys(path, doomed)
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None
    if not removed:
        raise click.ClickException(f"no such key in {path}; nothing was changed")
    for key in removed:
        click.echo(f"Revoked {key.fingerprint} of {key.service}.")


def _key_file() -> Path:
    path = settings_or_stop().service_keys_file
    if path is None:
        raise UsageError("SERVICE_KEYS_FILE is not set, so there is no file to keep keys in")
    return path


def _read(path: Path) -> list[ServiceKey]:
    try:
        return read_key_file(path)
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(f"{path} cannot be used: {reason}; nothing was changed")


def _describe(key: ServiceKey) -> tuple[str, str, str, str, str, str]:
    return (
        key.fingerprint,
        key.service,
        "alive" if key.is_alive() else "expired",
        key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never",
        ", ".join(sorted(key.providers)) if key.providers else "all",
        ", ".join(sorted(key.scopes)),
    )


def _expiry(text: str) -> datetime:
    days = _DAYS.fullmatch(text)
    if days:
        return datetime.now(UTC).replace(microsecond=0) + timedelta(days=int(days[1]))
    try:
        parsed = datetime.fromisoformat(text)
        moment = parsed.astimezone(UTC) if parsed.tzinfo else None
    except (ValueError, OverflowError):
        moment = None
    if moment is None:
        raise UsageError("--expires takes days like 90d, or a time with an offset like 2027-03-01T00:00:00Z")
    if moment <= datetime.now(UTC):
        raise UsageError("--expires lies in the past")
    return moment
