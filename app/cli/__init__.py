"""The `token-vault` command: arguments, words and exit codes around the same objects that the service uses."""

from __future__ import annotations

import click

from app.cli.audit import audit
from app.cli.doctor import doctor
from app.cli.encryption import encryption
from app.cli.failure import Commands
from app.cli.health import health
from app.cli.init import init
from app.cli.keys import keys
from app.cli.kms import kms
from app.cli.rewrap import rewrap
from app.cli.serve import serve
from app.cli.service_key import service_key


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pulseplan-token-vault", prog_name="token-vault")
def main() -> None:
    """PulsePlan's token vault: stores, reveals and rotates users' OAuth and API tokens.

    Settings come from the environment and from .env in the current directory; .env.example describes each.
    Exit codes: 0 done, 1 something was found wrong, 2 the command or a setting is wrong, or it could not be done.
    """


for command in (init, serve, keys, service_key, kms, encryption, rewrap, audit, doctor, health):
    main.add_command(command)
