"""How commands are found."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

from app.cli.guarded import Guarded

# each lies in the module of its name
NAMES: Final = ("audit", "doctor", "encryption", "health", "init", "keys", "kms", "rewrap", "serve", "service-key")


class Commands(Guarded, click.Group):
    """Imports a command once it is called, for most of what one of them needs the others do without."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        if cmd_name not in NAMES:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"app.cli.{name}"), name)
        return command
