"""Counted nouns and tables for terminals."""

from __future__ import annotations

from collections.abc import Sequence

import click

# --- Numbers with what they count.


def counted_noun(count: int, noun: str) -> str:
    """Say how many that is, in the singular where it is one; the plural is the noun with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


# --- Columns of text.


def print_table(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> None:
    """Print rows in columns, those that `right` numbers aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())
