"""`token-vault keys`: generate and retire master keys."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator

import click

from app.cli.errors import settings_or_stop
from app.cli.output import counted_noun
from app.cli.store import opened_store
from app.config.settings import Settings
from app.observability.logging import configure_command_logging
from app.security.keyring import new_key_text
from app.tokens.census import Census

# --- Which master keys the settings hold, which of them a token still needs, and how one is taken out.


def configured_versions(settings: Settings) -> set[int]:
    """Return the versions of the master keys that are set."""
    if settings.token_encryption_key is None:
        return set()
    return {settings.encryption_key_version, *settings.token_encryption_previous_keys}


def writing_versions(settings: Settings) -> set[int]:
    """Return the version under which new tokens are or may be sealed; under KMS only a fallback has one."""
    seals_locally = not settings.use_kms or settings.kms_fallback_to_local
    return {settings.encryption_key_version} if seals_locally else set()


def state_of(version: int, settings: Settings) -> str:
    """Say in a word what the settings do with a version."""
    if version not in configured_versions(settings):
        return "missing"
    if version < settings.min_key_version:
        return "refused"
    return "writes" if version in writing_versions(settings) else "reads"


def unneeded_versions(settings: Settings, census: Census) -> list[int]:
    """Return the versions that neither a token nor a writer needs."""
    return sorted(configured_versions(settings) - writing_versions(settings) - census.versions.keys())


def reasons_to_keep(version: int, settings: Settings, census: Census) -> Iterator[str]:
    """Say why this version cannot be retired; nothing where it can."""
    if version in writing_versions(settings):
        role = "new tokens are sealed under it" if not settings.use_kms else "KMS_FALLBACK_TO_LOCAL seals under it"
        yield f"version {version} is ENCRYPTION_KEY_VERSION: {role}"
    needing = census.needing_version(version)
    if needing:
        yield f"version {version} is still needed by {counted_noun(needing, 'token')}; `token-vault rewrap` moves them"
    if census.unknown:
        yield (
            f"{counted_noun(census.unknown, 'token')} of no known format: nobody can tell which key that needs; "
            "`token-vault rewrap --dry-run` names what it cannot read"
        )


def settings_without(version: int, settings: Settings, census: Census) -> Iterator[str]:
    """Say which settings to change, a line each; names of settings and versions, never a key."""
    left = configured_versions(settings) - {version}
    if version in settings.token_encryption_previous_keys:
        kept = sorted(settings.token_encryption_previous_keys.keys() - {version})
        rest = f"keep {_listed(kept)}" if kept else "nothing is left in it, so remove the setting"
        yield f"TOKEN_ENCRYPTION_PREVIOUS_KEYS: take version {version} out; {rest}"
    elif version in configured_versions(settings) and left:
        yield (
            f"TOKEN_ENCRYPTION_KEY, ENCRYPTION_KEY_VERSION: put the key of version {max(left)} and {max(left)} there, "
            "and take it out of TOKEN_ENCRYPTION_PREVIOUS_KEYS"
        )
    elif version in configured_versions(settings):
        yield "TOKEN_ENCRYPTION_KEY, ENCRYPTION_KEY_VERSION: remove both; KMS seals, and no token needs a master key"
    lowest = min({*census.versions, *writing_versions(settings)}, default=None)
    if lowest is not None and lowest > max(version, settings.min_key_version) and left:
        yield f"MIN_KEY_VERSION={lowest}: no token needs a lower version"
    if settings.allow_legacy_formats and not census.legacy:
        yield "ALLOW_LEGACY_FORMATS=false: no token is in a format of PulsePlan's"


def _listed(versions: list[int]) -> str:
    return f"version{'s' if len(versions) > 1 else ''} {', '.join(map(str, versions))}"


# --- `token-vault keys`: master keys.

_REMINDER = """
This holds for what is stored now. A replica that still seals under version {version} would store more: all of them must
have been restarted with another key before this was counted. A backup from before needs the old key as well, so keep
a copy of it as long as the backups."""


@click.group()
def keys() -> None:
    """Master keys for local encryption."""


@keys.command()
def generate() -> None:
    """Print a fresh 32-byte master key in base64, ready for TOKEN_ENCRYPTION_KEY."""
    click.echo(new_key_text())


@keys.command()
@click.argument("version", type=click.IntRange(1))
def retire(version: int) -> None:
    """Prove that no token needs master key VERSION, and print which settings to change. Changes nothing itself.

    Exit codes: 0 it can be retired, 1 it is still needed, 2 nothing could be counted, or a setting is wrong.
    """
    settings = settings_or_stop()
    configure_command_logging()  # the lines below say it all
    census = asyncio.run(_count(settings))
    reasons = list(reasons_to_keep(version, settings, census))
    for reason in reasons:
        click.echo(f"Error: {reason}", err=True)
    if reasons:
        sys.exit(1)
    click.echo(f"None of {census.rows:,} tokens needs master key version {version}.\n")
    if version not in configured_versions(settings):
        click.echo(f"These settings hold no key of version {version}.")
    changes = list(settings_without(version, settings, census))
    click.echo("On every replica, change and restart:" if changes else "No setting is left to change.")
    for change in changes:
        click.echo(f"  {change}")
    click.echo(_REMINDER.format(version=version))


async def _count(settings: Settings) -> Census:
    async with opened_store(settings) as tokens:
        return Census.of(await tokens.census(), primary_scheme=None)  # what is due does not matter here
