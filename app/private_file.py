"""Read a file that decides which keys the vault trusts: its owner and root alone may be able to change it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
# without O_NONBLOCK, opening a FIFO waits for a writer
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class UnsafeFileError(Exception):
    """What is wrong with the file, without its path and content."""


def read_private_file(path: Path, *, maximum_bytes: int) -> bytes:
    """Return the content of a regular file that its owner and root alone can change.

    Raises `UnsafeFileError` if the group or all users may write to the file, or may replace it because they may write
    to its folder or to the folder of a link to it, or if it is too large, and `OSError`. In a sticky folder, such as
    the one of a Kubernetes secret, nobody else can replace it.
    """
    _require_private_folder(path.parent)
    _require_private_folder(Path(os.path.realpath(path)).parent)  # resolve() raises RuntimeError for a loop of links
    descriptor = os.open(path, _READ)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError("it is not a regular file")
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise UnsafeFileError("other users can write to the file; remove that with chmod go-w")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(maximum_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > maximum_bytes:
        raise UnsafeFileError(f"the file is over {maximum_bytes // 1024:,} KiB")
    return content


def _require_private_folder(folder: Path) -> None:
    mode = folder.stat().st_mode
    if mode & _WRITABLE_BY_OTHERS and not mode & stat.S_ISVTX:
        raise UnsafeFileError("other users can write to its folder; remove that with chmod go-w")
