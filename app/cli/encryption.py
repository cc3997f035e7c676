"""`token-vault encryption`: which keys the stored tokens need."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.keys import state_of, unneeded_versions
from app.cli.output import counted_noun, print_table
from app.cli.store import opened_store
from app.composition import Encryption, build_encryption
from app.config.settings import Settings, SettingsError
from app.errors import EncryptionError
from app.observability.logging import configure_command_logging
from app.tokens.census import Census, CensusRow
from app.tokens.cipher import TokenCipher


@click.group()
def encryption() -> None:
    """How the stored tokens are encrypted."""


@dataclass(frozen=True, slots=True)
class Status:
    """What is stored, and what writes. `problem` is the primary's; with one its scheme may not be known."""

    settings: Settings
    census: Census
    problem: str | None


@encryption.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print what GET /v1/encryption answers.")
def status(as_json: bool) -> None:  # noqa: FBT001  click's way
    """Count the tokens by key, and say what a stricter setting would refuse and what to do next.

    Exit codes: 0 counted, 1 counted, but what new tokens are sealed with does not work, 2 nothing could be counted.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the lines below say it all
    try:
        built = build_encryption(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    with closing(built):
        found = asyncio.run(_status(settings, built))
    if as_json:
        click.echo(json.dumps(_as_json(found), indent=2))
    else:
        _print(found)
    if found.problem is not None:
        click.echo(f"Error: {found.problem}", err=True)
        sys.exit(1)


async def _status(settings: Settings, built: Encryption) -> Status:
    problem = None
    cipher = TokenCipher(encryption=built.service)
    async with opened_store(settings) as repository:
        try:
            await cipher.prove_primary()
        except EncryptionError as error:
            problem = f"{error.code}: {error.detail}; see `token-vault doctor`"
        census = Census.of(await repository.census(), primary_scheme=cipher.primary_scheme)
    return Status(settings, census, problem)


def _as_json(found: Status) -> dict[str, object]:
    census = found.census
    return {
        "primary_scheme": census.primary_scheme,
        "tokens": census.rows,
        "due": census.due,
        "unknown": census.unknown,
        "schemes": [
            {"scheme": line.scheme, "materials": list(line.materials), "tokens": line.rows} for line in census.lines
        ],
        "key_versions": [
            {"version": version, "tokens": rows, "refused_above": census.below_version(version + 1)}
            for version, rows in census.versions.items()
        ],
        "refused_without_legacy_formats": census.legacy,
    }


def _print(found: Status) -> None:
    census = found.census
    click.echo(f"New tokens are sealed under {census.primary_scheme or 'a key that KMS has not named'}.\n")
    rows = [("TOKENS", "SCHEME", "STATE")]
    rows += [(f"{line.rows:,}", _name(line), _state(line, census.primary_scheme)) for line in census.lines]
    due = "" if census.due is None else f"{census.due:,} due for a rewrap"
    print_table([*rows, (f"{census.rows:,}", "in all", due)], right=[0])
    if census.versions:
        click.echo("")
        print_table([("MASTER KEY", "TOKENS", "KEY", "REFUSED BY"), *_version_rows(found)], right=[1])
    click.echo(f"\nALLOW_LEGACY_FORMATS=false would refuse {counted_noun(census.legacy, 'token')}.")
    for advice in _advice(found):
        click.echo(f"  - {advice}")


def _name(line: CensusRow) -> str:
    return line.scheme or f"none; looks like {' and '.join(line.materials) or 'nothing'}"


def _state(line: CensusRow, primary_scheme: str | None) -> str:
    if primary_scheme is None:
        return ""
    return "current" if line.scheme == primary_scheme else "due"


def _version_rows(found: Status) -> Iterator[tuple[str, str, str, str]]:
    for version, rows in found.census.versions.items():
        refused = f"MIN_KEY_VERSION={version + 1}, {found.census.below_version(version + 1):,} in all"
        possible = version < found.settings.encryption_key_version  # the setting goes no higher
        yield f"version {version}", f"{rows:,}", state_of(version, found.settings), refused if possible else ""


def _advice(found: Status) -> Iterator[str]:
    census, settings = found.census, found.settings
    missing = [str(version) for version in census.versions if state_of(version, settings) == "missing"]
    if missing:
        yield f"Give back the master keys of version {', '.join(missing)}: without them tokens cannot be read."
    if census.unknown:
        unknown = counted_noun(census.unknown, "token")
        yield f"Of no known format: {unknown}. `token-vault rewrap --dry-run` names what it cannot read."
    if census.due:
        yield "`token-vault rewrap` moves what is due."
    elif census.due == 0 and census.rows:
        yield "Nothing is due."
    for version in [] if census.unknown else unneeded_versions(settings, census):
        yield f"No token needs master key version {version}: `token-vault keys retire {version}`."
    if settings.allow_legacy_formats and not census.legacy and not census.unknown:
        yield "No token needs a format of PulsePlan's: set ALLOW_LEGACY_FORMATS=false."
