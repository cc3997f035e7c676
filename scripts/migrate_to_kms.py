"""Rewrap every token under AWS KMS: `token-vault rewrap`, refused unless KMS is the primary.

It rewraps rows in PulsePlan's formats too, and says before it begins that PulsePlan's own service cannot read them
afterwards.
"""

from __future__ import annotations

import click

from app.cli.errors import UsageError, settings_or_stop
from app.cli.group import ProtectedCommand
from app.cli.rewrap import rewrap


@click.command(
    cls=ProtectedCommand,
    params=rewrap.params,
    help=rewrap.help,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.pass_context
def migrate_to_kms(context: click.Context, /, **_options: object) -> None:
    """Require KMS, then run the command."""
    if not settings_or_stop().use_kms:
        raise UsageError("USE_KMS is not true, so KMS is not the primary. docs/key-rotation.md has the settings")
    context.forward(rewrap)


if __name__ == "__main__":
    migrate_to_kms()
