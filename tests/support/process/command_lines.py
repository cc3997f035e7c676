"""The command lines that `token-vault` takes, and whether one that stands in a file is among them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import click

from app.cli import main

PROGRAM = "token-vault"


def check_command_line(words: Sequence[str]) -> None:
    """Parse the words as the program would, without running anything; raises `click.ClickException`."""
    program, *arguments = words
    assert program == PROGRAM
    command: click.Command = main
    # --help and --version end the parsing, and so does the bare name of a group, which shows its help
    with contextlib.suppress(click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        context = main.make_context(PROGRAM, arguments)
        while isinstance(command, click.Group):
            name, found, arguments = command.resolve_command(
                context,
                [*context._protected_args, *context.args],  # noqa: SLF001  where click keeps them for `invoke`
            )
            assert name is not None
            assert found is not None
            command = found
            context = command.make_context(name, arguments, parent=context)


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """Return the commands below this one by name."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}
