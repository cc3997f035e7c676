"""The `token-vault` command: arguments, words and exit codes around the same objects that the service uses."""

from __future__ import annotations

import click

from app.cli.group import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pulseplan-token-vault", prog_name="token-vault")
def main() -> None:
    """PulsePlan's token vault: stores, reveals and rotates users' OAuth and API tokens.

    Settings come from the environment and from .env in the current directory; .env.example describes each.
    Exit codes: 0 done, 1 something was found wrong, 2 the command or a setting is wrong, or it could not be done.
    """
