"""`token-vault service-key`: create, list and revoke the keys of calling services."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import click

from app.callers.service_key_file import Announce, EditNotFlushedError, add_key, read_key_file, revoke_keys
from app.callers.service_keys import (
    KeyListError,
    Scope,
    ServiceKey,
    generate_key,
    hash_key,
    parse_key_list,
    render_key_list,
)
from app.cli.errors import UsageError
from app.cli.output import AS_JSON, print_json, print_table
from app.cli.service_key_changes import UnrecordedRevocationError, record_changes
from app.config.service_keys import ServiceKeyListSettings, ServiceKeySettings
from app.config.settings import Settings
from app.config.source import S, SettingsError, loaded
from app.tokens.events import Operation
from app.tokens.models import SLUG_PATTERN
from app.tokens.provider_rules import KNOWN_PROVIDERS

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DAYS = re.compile(r"([1-9][0-9]{0,4})d")
_FINGERPRINT_DIGITS = 8
_LIKENESS = 0.75  # of two names, as difflib computes it: canvass and canvas have 0.92, canvas-beta and canvas 0.71


@click.group("service-key")
def service_key() -> None:
    """Create, list and revoke the keys that authenticate calling services.

    The file SERVICE_KEYS_FILE holds the keys' SHA-256 hashes. A running vault notices a change of
    the file within a second, and accepts a new key at once. The commands need no other setting;
    with AUDIT_LOG and AUDIT_KEY, changes are recorded.
    """


@service_key.command(short_help="Create a key and print it once.")
@click.option("--service", metavar="NAME", required=True, help="Name of the calling service, like pulseplan-api.")
@click.option(
    "--scope",
    "scopes",
    metavar="SCOPE",
    required=True,
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help=f"Allowed operations: {', '.join(Scope)}. Repeatable.",
)
@click.option("--provider", "providers", metavar="NAME", multiple=True, help="Allow only this provider. Repeatable.")
@click.option(
    "--expires",
    metavar="TIME",
    help="When the key expires: days like 90d, or a time like 2027-03-01T00:00:00Z.  [default: never]",
)
@click.option(
    "--on-behalf-of",
    type=click.Choice(["required"]),
    help="Each call must carry X-On-Behalf-Of with the JWT of the user that it concerns.  [default: calls may concern "
    "every user]",
)
@click.option("--no-typo-check", is_flag=True, help="Allow a provider whose name is like that of a known one.")
@click.option(
    "--print-entry", is_flag=True, help="Change no file; also print a list for SERVICE_KEYS with the new entry."
)
def create(
    *,
    service: str,
    scopes: tuple[str, ...],
    providers: tuple[str, ...],
    expires: str | None,
    on_behalf_of: Literal["required"] | None,
    no_typo_check: bool,
    print_entry: bool,
) -> None:
    """Create a key, add its hash to SERVICE_KEYS_FILE, and print the key once: the vault keeps only the hash.

    Only the key goes to standard output; with --print-entry the JSON list for SERVICE_KEYS follows in the second line.

    Exit codes: 0 created, 2 an option or a setting is wrong, or the file or AUDIT_LOG cannot be used.
    """
    settings = None if print_entry else _settings(ServiceKeySettings)
    path = None if settings is None else _key_file(settings)
    if not _SERVICE.fullmatch(service):
        raise UsageError("--service must be at most 64 letters, digits, dots, dashes and underscores")
    for provider in providers:
        if not re.fullmatch(SLUG_PATTERN, provider):
            raise UsageError(f"--provider must match {SLUG_PATTERN}")
        if not no_typo_check:
            _require_no_typo(provider)
    key = generate_key()
    entry = ServiceKey(
        service=service,
        sha256=hash_key(key),
        scopes=frozenset(Scope(scope) for scope in scopes),
        providers=frozenset(providers) or None,
        expires_at=None if expires is None else _expiry(expires),
        on_behalf_of=on_behalf_of,
    )
    if entry.reveals_every_user():
        click.echo(
            "This key reveals the tokens of every user; --on-behalf-of required limits each call to one.", err=True
        )
    if settings is None or path is None:
        click.echo("No file was changed. The key, which is shown only once, and a value for SERVICE_KEYS:", err=True)
        click.echo(key)
        click.echo(json.dumps(json.loads(render_key_list([entry])), separators=(",", ":")))
        return

    def add(announce: Announce) -> list[ServiceKey]:
        add_key(path, entry, announce=announce)
        return [entry]

    try:
        record_changes(settings, Operation.CREATE_KEY, add)
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None
    except EditNotFlushedError as error:
        raise UsageError(f"{path}: {error}; the key {entry.fingerprint} is not shown: revoke it") from None
    click.echo(f"Added {entry.fingerprint} for {service} to {path}. The key is shown only once:", err=True)
    click.echo(key)


@service_key.command("list", short_help="List the keys.")
@AS_JSON
def list_keys(*, as_json: bool) -> None:
    """List the keys of SERVICE_KEYS_FILE and SERVICE_KEYS: fingerprint, service, state, expiry, and what they may use.

    A fingerprint is the beginning of a key's hash; nobody can authenticate with it. USERS is "all", or "on behalf of"
    if each call needs the JWT of the user that it concerns. The last line names the keys that reveal every user.

    Exit codes: 0 listed, 2 a setting is wrong, or the file cannot be used.
    """
    settings = _settings(ServiceKeyListSettings)
    keys = _read(settings.service_keys_file) if settings.service_keys_file else []
    if settings.service_keys is not None:
        try:
            keys += parse_key_list(settings.service_keys.get_secret_value())
        except KeyListError as error:
            raise UsageError(f"SERVICE_KEYS: {error}") from None
    if as_json:
        print_json([_members(key) for key in keys])
        return
    if not keys:
        click.echo("There are no service keys: every call under /v1 gets 401.")
        return
    rows = [("FINGERPRINT", "SERVICE", "STATE", "EXPIRES", "USERS", "PROVIDERS", "SCOPES")]
    print_table([*rows, *map(_row, keys)])
    reveal_all = [key.fingerprint for key in keys if key.is_alive() and key.reveals_every_user()]
    if reveal_all:
        click.echo(f"Reveal the tokens of every user without a user's JWT: {', '.join(reveal_all)}.")


@service_key.command(short_help="Revoke a key, or all keys of a service.")
@click.argument("fingerprint", required=False)
@click.option("--service", metavar="NAME", help="Revoke every key of this service.")
def revoke(fingerprint: str | None, service: str | None) -> None:
    """Remove the key with this FINGERPRINT, or every key of a service, from SERVICE_KEYS_FILE.

    FINGERPRINT is the first 8 or more digits that `token-vault service-key list` shows. Give it or --service.

    A key is revoked even if AUDIT_LOG cannot be written, for example because its disk is full.

    Exit codes: 0 revoked, 1 there is no such key, 2 an option or a setting is wrong, or the file cannot be used,
    3 revoked, but AUDIT_LOG has no record of it.
    """
    if (fingerprint is None) == (service is None):
        raise UsageError("give either FINGERPRINT or --service")
    if fingerprint is not None and not re.fullmatch(rf"[0-9a-f]{{{_FINGERPRINT_DIGITS},64}}", fingerprint):
        raise UsageError(f"FINGERPRINT must be at least {_FINGERPRINT_DIGITS} lower-case hex digits")
    settings = _settings(ServiceKeySettings)
    path = _key_file(settings)
    if fingerprint is not None and len({k.sha256 for k in _read(path) if k.sha256.startswith(fingerprint)}) > 1:
        raise UsageError("several keys begin with this fingerprint; give more digits")

    def is_revoked(key: ServiceKey) -> bool:
        return key.service == service if fingerprint is None else key.sha256.startswith(fingerprint)

    try:
        removed = record_changes(
            settings, Operation.REVOKE_KEY, lambda announce: revoke_keys(path, is_revoked, announce=announce)
        )
    except UnrecordedRevocationError as error:
        _print_revoked(error.keys)
        raise
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None
    except EditNotFlushedError as error:
        raise UsageError(f"{path}: {error}") from None
    if not removed:
        raise click.ClickException(f"there is no such key in {path}; nothing was changed")
    _print_revoked(removed)


def _print_revoked(keys: Sequence[ServiceKey]) -> None:
    for key in keys:
        click.echo(f"Revoked {key.fingerprint} of {key.service}.")


def _settings(kind: type[S]) -> S:
    try:
        return loaded(kind, names_of=Settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _key_file(settings: ServiceKeyListSettings) -> Path:
    if settings.service_keys_file is None:
        raise UsageError("SERVICE_KEYS_FILE is not set: it names the file that holds the keys")
    return settings.service_keys_file


def _require_no_typo(provider: str) -> None:
    if provider not in KNOWN_PROVIDERS and (like := get_close_matches(provider, KNOWN_PROVIDERS, 1, _LIKENESS)):
        raise UsageError(f"--provider {provider} is like {like[0]}; if {provider} is meant, add --no-typo-check")


def _read(path: Path) -> list[ServiceKey]:
    try:
        return read_key_file(path)
    except (KeyListError, OSError) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> UsageError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return UsageError(f"{path} cannot be used: {reason}; nothing was changed")


def _members(key: ServiceKey) -> dict[str, object]:
    return {
        "fingerprint": key.fingerprint,
        "service": key.service,
        "alive": key.is_alive(),
        "expires_at": None if key.expires_at is None else key.expires_at.isoformat(timespec="seconds"),
        "on_behalf_of": key.on_behalf_of,
        "reveals_every_user": key.reveals_every_user(),
        "providers": None if key.providers is None else sorted(key.providers),
        "scopes": sorted(key.scopes),
    }


def _row(key: ServiceKey) -> tuple[str, ...]:
    return (
        key.fingerprint,
        key.service,
        "alive" if key.is_alive() else "expired",
        key.expires_at.isoformat(timespec="seconds") if key.expires_at else "never",
        "all" if key.on_behalf_of is None else "on behalf of",
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
        raise UsageError("--expires must be days like 90d, or a time with an offset like 2027-03-01T00:00:00Z")
    if moment <= datetime.now(UTC):
        raise UsageError("--expires is in the past")
    return moment
