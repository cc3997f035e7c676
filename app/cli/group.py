"""Command classes: lazily imported commands that run in a protected process."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from app.server.hardening import UnprotectedProcessError, protect_process

# each command is in the module of the same name, with _ for -
COMMANDS: Final = (
    "audit",
    "doctor",
    "encryption",
    "health",
    "init",
    "keys",
    "kms",
    "migrate",
    "providers",
    "refresh",
    "rewrap",
    "serve",
    "service-key",
)


class ProtectedCommand(click.Command):
    """A command that protects its process first and ends with one line and exit code 2 on an unexpected exception.

    A process that cannot be protected ends at once with exit code 2.

    Python's own traceback would print the exception's text, which may hold a secret.
    """

    def main(self, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401  click's
        try:
            protect_process()
        except UnprotectedProcessError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)
        try:
            return super().main(*arguments, **options)
        except Exception as error:  # noqa: BLE001  click handles its own exceptions
            from app.cli.unexpected_errors import reported  # noqa: PLC0415  imports the log, which slows every start

            usage_error = reported(error)
            with suppress(OSError):
                usage_error.show()
            _flush_or_discard()
            sys.exit(usage_error.exit_code)


class LazyGroup(ProtectedCommand, click.Group):
    """Import a command's module when it is called: most commands need few of the libraries."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  click's
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        gc.disable()  # imports leave hardly any garbage, and each collection among them visits all that there is
        try:
            command: click.Command = getattr(import_module(f"app.cli.{name}"), name)
        finally:
            gc.enable()
        return command


def _flush_or_discard() -> None:
    """Discard output that cannot be written: Python would try again at exit and replace the exit code."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is None:
            continue
        try:
            stream.flush()
        except OSError:
            with suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
