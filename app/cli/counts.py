"""Numbers with what they count."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """Say how many that is, in the singular where it is one; the plural is the noun with an s."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
