"""docs/cli.md holds the help of every command."""

from __future__ import annotations

import inspect
import re
import textwrap

import click
import pytest

from tests.support.paths import ROOT
from tests.support.process.command_lines import PROGRAM, leaf_commands

DOCUMENT = (ROOT / "docs" / "cli.md").read_text()
COMMANDS = leaf_commands()
_WIDTH = 120


def _heading(words: tuple[str, ...]) -> str:
    command = COMMANDS[words]
    arguments = [piece for piece in command.collect_usage_pieces(click.Context(command)) if piece != "[OPTIONS]"]
    return " ".join(("##", PROGRAM, *words, *arguments))


def _section(words: tuple[str, ...]) -> str:
    """Return how the section of a command begins: its help, and a table of its options."""
    command = COMMANDS[words]
    context = click.Context(command)
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    parts = [_heading(words), *(textwrap.fill(text, _WIDTH) for text in paragraphs)]
    options = [one for one in command.params if isinstance(one, click.Option)]
    if options:
        rows = ["| option | meaning |", "|---|---|"]
        for option in options:
            name, text = option.get_help_record(context) or ("", "")
            rows.append(f"| `{name}` | {text} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def test_the_reference_has_every_command_once_in_order() -> None:
    headings = re.findall(rf"^## {PROGRAM} .+$", DOCUMENT, re.MULTILINE)
    assert headings == list(map(_heading, COMMANDS))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_the_section_of_a_command_is_its_help(words: tuple[str, ...]) -> None:
    section = _section(words)
    assert section in DOCUMENT, f"docs/cli.md should hold:\n\n{section}"
