"""`token-vault keys`: master keys."""

from __future__ import annotations

import asyncio
import sys

import click

from app.cli.failure import settings_or_stop
from app.cli.master_keys import configured_versions, reasons_to_keep, settings_without
from app.cli.store import opened_store
from app.config.settings import Settings
from app.observability.logging import configure_command_logging
from app.security.keyring import new_key_text
from app.tokens.census import Census

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
