"""Command classes: lazily imported commands that run in a protected process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from app.server.hardening import protect_process

# --- What stands around every command.


class Guarded(click.Command):
    """A command whose process is protected first of all, and that stops with one line and exit code 2 for a defect too.

    Nothing was found out then, and Python's own traceback would print the text of whatever library raised it.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  click's
        protect_process()
        try:
            return super().main(*arguments, **options)
        except Exception as error:  # noqa: BLE001  what click knows it has handled
            from app.cli.errors import stopped_by  # noqa: PLC0415  it needs the log, which most commands do without

            stop = stopped_by(error)
            with suppress(OSError):
                stop.show()
            _print_no_more()
            sys.exit(stop.exit_code)


def _print_no_more() -> None:
    """Throw away what a stream still holds: Python would try once more as it ends, and end with a code of its own."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, stream.fileno())
                os.close(nowhere)


# --- How commands are found.

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
