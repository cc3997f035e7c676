"""`token-vault migrate`: create or upgrade the table of the PostgreSQL and Supabase stores."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import click

from app.cli.errors import UsageError
from app.cli.output import AS_JSON, counted_noun, print_json, print_table
from app.config.database_url import DatabaseUrl
from app.config.migration import load_migration_url
from app.config.source import SettingsError
from app.errors import StoreError
from app.stores.postgres.migrations import (
    Migration,
    MigrationError,
    MigrationState,
    apply_migrations,
    bundled_migrations,
    recorded_migrations,
)

T = TypeVar("T")
_TIME: Final = "%Y-%m-%d %H:%M:%S UTC"


@click.group(invoke_without_command=True)
@click.option("--to", "last", metavar="FILE", help="Stop after this file: its name, or the number that it begins with.")
@click.option("--again", is_flag=True, help="Run every file, also those that were applied before.")
@click.pass_context
def migrate(context: click.Context, *, last: str | None, again: bool) -> None:
    """Create or upgrade oauth_tokens in the database of DATABASE_URL, whose user must own the table.

    Runs the files of migrations/ from the first that is new or has changed, in one transaction: all of them take effect
    or none. A second run waits for the first. Records the files in token_vault.migrations.

    Exit codes: 0 done or nothing to do, 2 a setting is wrong, or nothing was changed because of an error.
    """
    if context.invoked_subcommand is not None:
        if last is not None or again:
            raise click.UsageError("--to and --again are options of `token-vault migrate` itself")
        return
    migrations = bundled_migrations()
    ran = _run(
        apply_migrations(
            _url(),
            migrations,
            last=migrations[-1] if last is None else _named(migrations, last),
            again=again,
            on_start=lambda name: click.echo(f"{name} …", err=True),
            on_warning=lambda text: click.echo(f"Warning: {text}", err=True),
        )
    )
    if not ran:
        click.echo("Nothing to do: every file was applied before.")
        return
    click.echo(f"Applied {counted_noun(len(ran), 'file')}: {ran[0]} to {ran[-1]}." if ran[1:] else f"Applied {ran[0]}.")


@migrate.command(short_help="List the files and what was applied.")
@AS_JSON
def status(*, as_json: bool) -> None:
    """List the files of migrations/ and whether they were applied. A file that was run with psql counts as pending.

    Exit codes: 0 every file is applied, 1 a file is pending or has changed since, 2 an error or a wrong setting.
    """
    recorded = _run(recorded_migrations(_url(), bundled_migrations()))
    if as_json:
        print_json(
            [
                {
                    "name": one.migration.name,
                    "state": one.state,
                    "applied_at": None if one.applied_at is None else one.applied_at.isoformat(),
                }
                for one in recorded
            ]
        )
    else:
        times = ["" if one.applied_at is None else f"{one.applied_at:{_TIME}}" for one in recorded]
        print_table([(one.migration.name, one.state, time) for one, time in zip(recorded, times, strict=True)])
    sys.exit(0 if all(one.state is MigrationState.APPLIED for one in recorded) else 1)


def _named(migrations: list[Migration], name: str) -> Migration:
    wanted = name.removesuffix(".sql")
    for migration in migrations:
        if wanted in {migration.name, migration.name.partition("_")[0]}:
            return migration
    raise click.BadParameter(f"is none of {', '.join(one.name for one in migrations)}", param_hint="--to")


def _url() -> DatabaseUrl:
    try:
        return load_migration_url()
    except SettingsError as error:
        raise UsageError(str(error)) from None


def _run(task: Coroutine[Any, Any, T]) -> T:
    try:
        return asyncio.run(task)
    except (MigrationError, StoreError) as error:
        raise UsageError(str(error)) from None
