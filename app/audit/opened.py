"""A file of the record, open for reading."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file; whatever it refuses is an `OSError` that names it, as Python's names only what cannot be opened."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
