"""The addresses that this process tries to connect to, seen where Python asks the operating system."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_watching: list[list[Any]] = []
_installed = False


@contextmanager
def watched_contacts() -> Iterator[list[Any]]:
    """Collect the address of each connection that any code of this process begins within the block."""
    global _installed  # noqa: PLW0603  an audit hook stays for the life of the process
    if not _installed:
        sys.addaudithook(_note)
        _installed = True
    found: list[Any] = []
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        for found in _watching:
            found.append(arguments[1])
