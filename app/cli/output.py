"""Results of commands: counted nouns, tables, and JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import click


def counted_noun(count: int, noun: str) -> str:
    """Return "1 token", "2 tokens", "1,000 tokens"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def print_table(rows: Sequence[Sequence[str]], *, right: Collection[int] = ()) -> None:
    """Print rows in aligned columns; `right` holds the numbers of right-aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")


def print_json(rows: Sequence[dict[str, object]]) -> None:
    click.echo(json.dumps(rows))
