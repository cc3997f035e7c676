"""`token-vault keys`: generate and retire master keys."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import Final

import click

from app.cli.errors import settings_or_stop
from app.cli.output import counted_noun
from app.cli.store import opened_store
from app.config.settings import Settings
from app.observability.logging import configure_command_logging
from app.security.keyring import new_key_text
from app.tokens.census import Census
from app.tokens.verified_census import verified_census

_REMINDER = """
The count is of the rows that are stored now. It is a proof only if no replica encrypts under version {version} any
more: one that was not restarted with another key stores more such rows. Backups from before need the old key: keep a
copy of it as long as you keep them."""

STRANGE_REMEDY: Final = (
    "set their encryption_scheme to null and run `token-vault rewrap`, or store the tokens again with PUT"
)


@click.group()
def keys() -> None:
    """Generate and retire master keys, the keys of local encryption."""


@keys.command(short_help="Print a new master key.")
def generate() -> None:
    """Print a new master key for TOKEN_ENCRYPTION_KEY: 32 random bytes in base64.

    Exit codes: 0 printed, 2 an error.
    """
    click.echo(new_key_text())


@keys.command(short_help="Check whether a master key can be removed.")
@click.argument("version", type=click.IntRange(1))
def retire(version: int) -> None:
    """Check whether the master key VERSION can be removed, and print the settings to change.

    Reads every ciphertext, because a row may name another key than it needs. Changes nothing itself.

    Exit codes: 0 the key can be removed, 1 it is still needed, 2 the rows could not be counted, or a setting is wrong.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the lines below are the output
    census = asyncio.run(_count(settings))
    reasons = list(reasons_to_keep(version, settings, census))
    for reason in reasons:
        click.echo(f"Error: {reason}", err=True)
    if reasons:
        sys.exit(1)
    click.echo(f"None of {counted_noun(census.rows, 'token')} needs master key version {version}.\n")
    if version not in configured_versions(settings):
        click.echo(f"These settings hold no key of version {version}.")
    changes = list(settings_without(version, settings, census))
    click.echo("On every replica, change and restart:" if changes else "No setting is left to change.")
    for change in changes:
        click.echo(f"  {change}")
    click.echo(_REMINDER.format(version=version))


async def _count(settings: Settings) -> Census:
    async with opened_store(settings) as tokens:
        return Census.of(await verified_census(tokens), primary_scheme=None)  # due rows do not matter here


def configured_versions(settings: Settings) -> set[int]:
    """Return the versions of the master keys in the settings."""
    if settings.token_encryption_key is None:
        return set()
    return {settings.encryption_key_version, *settings.token_encryption_previous_keys}


def primary_versions(settings: Settings) -> set[int]:
    """Return the version that encrypts new tokens; none under KMS without a fallback."""
    encrypts_locally = not settings.use_kms or settings.kms_fallback_to_local
    return {settings.encryption_key_version} if encrypts_locally else set()


def key_state(version: int, settings: Settings) -> str:
    """Return the state of a version in one word, for the table of `encryption status`."""
    if version not in configured_versions(settings):
        return "missing"
    if version < settings.min_key_version:
        return "refused"
    return "writes" if version in primary_versions(settings) else "reads"


def unneeded_versions(settings: Settings, census: Census) -> list[int]:
    """Return the configured versions that no stored token needs and that encrypt no new ones."""
    return sorted(configured_versions(settings) - primary_versions(settings) - census.versions.keys())


def reasons_to_keep(version: int, settings: Settings, census: Census) -> Iterator[str]:
    """Return why this version cannot be retired; empty if it can."""
    if version in primary_versions(settings):
        use = "new tokens are encrypted under it"
        if settings.use_kms:
            use = "KMS_FALLBACK_TO_LOCAL encrypts under it while KMS is down"
        yield f"version {version} is ENCRYPTION_KEY_VERSION: {use}"
    needing = census.needing_version(version)
    if needing:
        yield f"version {version} is still needed by {counted_noun(needing, 'token')}; run `token-vault rewrap`"
    if census.disagreeing:
        yield (
            f"{counted_noun(census.disagreeing, 'token')} whose row names another scheme than its ciphertext has; "
            "`token-vault encryption status --verify` counts them"
        )
    if census.malformed:
        yield (
            f"{counted_noun(census.malformed, 'token')} of unknown format, which may need any key; "
            "`token-vault rewrap --dry-run` lists the unreadable rows"
        )
    if census.strange:
        yield f"{strange_tokens(census)}; `token-vault encryption status` shows these schemes: {STRANGE_REMEDY}"


def strange_tokens(census: Census) -> str:
    """Describe the tokens that no sweep reads."""
    return f"{counted_noun(census.strange, 'token')} with a scheme that the vault does not write"


def settings_without(version: int, settings: Settings, census: Census) -> Iterator[str]:
    """Return the settings to change, a line each, with names and versions and never a key."""
    left = configured_versions(settings) - {version}
    if version in settings.token_encryption_previous_keys:
        kept = sorted(settings.token_encryption_previous_keys.keys() - {version})
        rest = f"keep {_listed(kept)}" if kept else "no other key is in it, so remove the setting"
        yield f"TOKEN_ENCRYPTION_PREVIOUS_KEYS: remove version {version}; {rest}"
    elif version in configured_versions(settings) and left:
        yield (
            f"TOKEN_ENCRYPTION_KEY: set the key of version {max(left)}, set ENCRYPTION_KEY_VERSION={max(left)}, and "
            "remove that version from TOKEN_ENCRYPTION_PREVIOUS_KEYS"
        )
    elif version in configured_versions(settings):
        yield "TOKEN_ENCRYPTION_KEY, ENCRYPTION_KEY_VERSION: remove both; KMS encrypts, and no token needs a master key"
    lowest = min({*census.versions, *primary_versions(settings)}, default=None)
    if lowest is not None and lowest > max(version, settings.min_key_version) and left:
        yield f"MIN_KEY_VERSION={lowest}: no token needs a lower version"
    if settings.allow_legacy_formats and not census.legacy:
        yield "ALLOW_LEGACY_FORMATS=false: no token is in a PulsePlan format"


def _listed(versions: list[int]) -> str:
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"
