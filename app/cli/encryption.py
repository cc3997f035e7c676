"""`token-vault encryption`: count the stored tokens by key."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.keys import STRANGE_REMEDY, key_state, strange_tokens, unneeded_versions
from app.cli.output import counted_noun, print_table
from app.cli.store import opened_store
from app.composition.encryption import Encryption, build_encryption
from app.config.settings import Settings, SettingsError
from app.errors import VaultError
from app.observability.logging import configure_command_logging
from app.tokens.census import Census, CensusRow
from app.tokens.verified_census import verified_census


@dataclass(frozen=True, slots=True)
class StatusReport:
    """The census and the settings. `problem` is why the primary key does not work; its scheme may be unknown then."""

    settings: Settings
    census: Census
    problem: str | None


@click.group()
def encryption() -> None:
    """Show the keys that the stored tokens need."""


@encryption.command("status", short_help="Count the stored tokens by key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON with the members of GET /v1/encryption instead.")
@click.option("--verify", is_flag=True, help="Read every ciphertext, and compare it with what its row claims.")
def status(as_json: bool, verify: bool) -> None:  # noqa: FBT001  click's way
    """Show how many stored tokens need each key, how many stricter settings would refuse, and what to do next.

    Exit codes: 0 counted, 1 counted, but the primary key does not work, or rows claim what their ciphertexts are not,
    2 not counted, or a setting is wrong.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the lines below are the output
    try:
        built = build_encryption(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from None
    with closing(built):
        found = asyncio.run(_status(settings, built, verify=verify))
    if as_json:
        verified = {"disagreeing": found.census.disagreeing} if verify else {}
        click.echo(json.dumps(_as_json(found) | verified, indent=2))
    else:
        _print(found)
    if found.problem is not None:
        click.echo(f"Error: {found.problem}", err=True)
    if found.census.disagreeing:
        click.echo(f"Error: {_disagreement(found.census)}", err=True)
    if found.problem is not None or found.census.disagreeing:
        sys.exit(1)


async def _status(settings: Settings, built: Encryption, *, verify: bool) -> StatusReport:
    problem = None
    async with opened_store(settings) as repository:
        try:
            built.service.self_test()  # afterwards the primary's scheme is known
        except VaultError as error:
            problem = f"{error.code}: {error.detail}; run `token-vault doctor`"
        lines = await (verified_census(repository) if verify else repository.census())
        census = Census.of(lines, primary_scheme=built.service.primary_scheme)
    return StatusReport(settings, census, problem)


def _as_json(found: StatusReport) -> dict[str, object]:
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


def _print(found: StatusReport) -> None:
    census = found.census
    click.echo(f"New tokens are encrypted under {census.primary_scheme or 'a KMS key whose ARN is unknown'}.\n")
    rows = [("TOKENS", "SCHEME", "STATE")]
    rows += [(f"{line.rows:,}", _name(line), _state(line, census.primary_scheme)) for line in census.lines]
    due = "" if census.due is None else f"{census.due:,} due for rewrap"
    print_table([*rows, (f"{census.rows:,}", "total", due)], right=[0])
    if census.versions:
        click.echo("")
        print_table([("MASTER KEY", "TOKENS", "KEY", "REFUSED BY"), *_version_rows(found)], right=[1])
    click.echo(f"\nALLOW_LEGACY_FORMATS=false would refuse {counted_noun(census.legacy, 'token')}.")
    for advice in _advice(found):
        click.echo(f"  - {advice}")


def _disagreement(census: Census) -> str:
    return (
        f"{counted_noun(census.disagreeing, 'token')} whose row names another scheme than its ciphertext has: somebody "
        "changed the row. It is refused with integrity; restore it from a backup, or store the token again."
    )


def _name(line: CensusRow) -> str:
    if line.disagrees:
        return f"{line.scheme}; is {' and '.join(line.materials)}"
    return line.scheme or f"none; looks like {' and '.join(line.materials) or 'nothing'}"


def _state(line: CensusRow, primary_scheme: str | None) -> str:
    if primary_scheme is None:
        return ""
    return "current" if line.scheme == primary_scheme else "due"


def _version_rows(found: StatusReport) -> Iterator[tuple[str, str, str, str]]:
    for version, rows in found.census.versions.items():
        refused = f"MIN_KEY_VERSION={version + 1}, {found.census.below_version(version + 1):,} in total"
        possible = version < found.settings.encryption_key_version  # the setting goes no higher
        yield f"version {version}", f"{rows:,}", key_state(version, found.settings), refused if possible else ""


def _advice(found: StatusReport) -> Iterator[str]:
    census, settings = found.census, found.settings
    missing = [str(version) for version in census.versions if key_state(version, settings) == "missing"]
    if missing:
        yield f"Restore the master keys of version {', '.join(missing)}: without them tokens cannot be read."
    if census.malformed:
        malformed = counted_noun(census.malformed, "token")
        yield f"{malformed} of unknown format: `token-vault rewrap --dry-run` lists the unreadable rows."
    if census.strange:
        yield f"{strange_tokens(census)}: {STRANGE_REMEDY}."
    if census.due:
        if census.due > census.strange:
            yield "Run `token-vault rewrap`: it rewraps the rows that are due."
        if census.legacy:
            yield "PulsePlan's own service cannot read the rows in its formats once they are rewrapped."
    elif census.due == 0 and census.rows:
        yield "No row is due."
    for version in [] if census.unknown else unneeded_versions(settings, census):
        yield f"No token needs master key version {version}: `token-vault keys retire {version}`."
    if settings.allow_legacy_formats and not census.legacy and not census.unknown:
        yield "No token needs a PulsePlan format: set ALLOW_LEGACY_FORMATS=false."
