"""What all commands have in common: how they are found, and how a defect in one of them ends."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any, Final

import click

# each lies in the module of its name
NAMES: Final = ("audit", "doctor", "encryption", "health", "init", "keys", "kms", "rewrap", "serve", "service-key")


class Commands(click.Group):
    """Imports a command once it is called, for most of what one of them needs the others do without.

    A command that has a defect stops with one line and exit code 2: nothing was found out. Python's own traceback
    would print the text of whatever library raised the exception.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(NAMES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        if cmd_name not in NAMES:
            return None
        name = cmd_name.replace("-", "_")
        command: click.Command = getattr(import_module(f"app.cli.{name}"), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401  click's
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit):  # click's own ways to stop
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:  # nobody reads on, which click makes quiet
                raise
            from app.cli.defect import Defect  # noqa: PLC0415  it needs the log, which most commands do without

            raise Defect.of(error) from None
