"""The `token-vault` command."""

from __future__ import annotations

import os

import click

from app.cli.group import LazyGroup

# A plugin of pydantic, which any installed package may be, would get every value that is validated, tokens too. Looking
# for them also reads the metadata of every installed package. pydantic reads this when it defines its first model.
os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="pulseplan-token-vault", prog_name="token-vault")
def main() -> None:
    """PulsePlan's token vault: store, reveal and rotate users' OAuth and API tokens.

    Settings come from the environment and from the file .env in the current directory; .env.example describes each.

    Exit codes: 0 success, 1 a problem was found, 2 a wrong option or setting, or an error. The help of each command
    says exactly what its codes mean.
    """
