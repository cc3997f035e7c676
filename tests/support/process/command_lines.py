"""Check that a command line in a document is one that `token-vault` accepts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import click

from app.cli import main

PROGRAM = "token-vault"


def check_command_line(words: Sequence[str]) -> None:
    """Parse the words like the program, without running the command; raises `click.ClickException`."""
    program, *arguments = words
    assert program == PROGRAM
    command: click.Command = main
    # --help, --version and a group without a command end the parsing
    with contextlib.suppress(click.exceptions.Exit, click.exceptions.NoArgsIsHelpError):
        context = main.make_context(PROGRAM, arguments)
        while isinstance(command, click.Group):
            below = [*context._protected_args, *context.args]  # noqa: SLF001  click keeps them there for `invoke`
            if not below and command.invoke_without_command:
                return
            name, found, arguments = command.resolve_command(context, below)
            assert name is not None
            assert found is not None
            command = found
            context = command.make_context(name, arguments, parent=context)


def commands_of(group: click.Group) -> dict[str, click.Command]:
    """Return the commands of a group by name."""
    context = click.Context(group)
    found = {name: group.get_command(context, name) for name in group.list_commands(context)}
    return {name: command for name, command in found.items() if command is not None}


def leaf_commands() -> dict[tuple[str, ...], click.Command]:
    """Return every command that runs by itself by its words, such as ("keys", "retire")."""

    def below(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        if not isinstance(command, click.Group) or command.invoke_without_command:
            yield path, command
        if isinstance(command, click.Group):
            for name, one in commands_of(command).items():
                yield from below(one, (*path, name))

    return dict(below(main, ()))
