"""Command classes: lazily imported commands that run in a protected process."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from app.server.hardening import UnprotectedProcessError, protect_process

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

# Each command is in the module of the same name, with _ for -. The list of commands shows these texts without importing
# the modules, which takes about a second.
COMMANDS: Final = {
    "audit": "Verify and search the audit trail.",
    "doctor": "Check settings, keys, store, KMS, TLS, OAuth and audit.",
    "encryption": "Show the keys that the stored tokens need.",
    "health": "Check that the vault on this machine answers.",
    "init": "Create .env and a service key for development.",
    "keys": "Generate and retire master keys.",
    "kms": "Set up the key in AWS KMS; estimate its cost.",
    "migrate": "Create or upgrade the table in PostgreSQL.",
    "providers": "List and check OAuth providers.",
    "refresh": "Refresh the tokens that are due.",
    "rewrap": "Rewrap every token under the primary key.",
    "serve": "Serve the API.",
    "service-key": "Create, list and revoke service keys.",
}


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

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  click's
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem  # noqa: PLC0415  for the shell alone

        names = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]


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
