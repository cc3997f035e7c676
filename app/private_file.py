"""Read a file that decides which keys the vault trusts: trusted users alone may be able to change it.

Trusted are root, the user of this process, and the owner of the file's folder, who could replace the file anyway.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
# without O_NONBLOCK, opening a FIFO waits for a writer; links were followed before, each with its checks
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_LINKS: Final = 40  # as many as Linux follows


class UnsafeFileError(Exception):
    """What is wrong with the file, without its path and content."""


def read_private_file(path: Path, *, maximum_bytes: int) -> bytes:
    """Return the content of a regular file that trusted users alone can change.

    Raises `UnsafeFileError` if it belongs to another user, if the group or all users may write to it, or may replace it
    because they may write to its folder or to the folder of a link to it, or if it is too large, and `OSError`. In a
    sticky folder, such as the one of a Kubernetes secret, nobody else can replace it.

    A file that is mounted alone, such as a secret of Docker Compose, may belong to anybody: only root can mount it.
    """
    target = follow_private_links(path)
    folder = target.parent.stat()
    descriptor = os.open(target, _READ)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError("it is not a regular file")
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise UnsafeFileError("other users can write to the file; remove that with chmod go-w")
        is_mounted = status.st_dev != folder.st_dev and not folder.st_mode & _WRITABLE_BY_OTHERS
        if not is_mounted and not _is_trusted(status, folder):
            raise UnsafeFileError("it belongs to another user; give it to root or to the vault's user with chown")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(maximum_bytes + 1)
    finally:
        os.close(descriptor)
    if len(content) > maximum_bytes:
        raise UnsafeFileError(f"the file is over {maximum_bytes // 1024:,} KiB")
    return content


def follow_private_links(path: Path) -> Path:
    """Return the path of the file itself, which need not exist; raises `UnsafeFileError` or `OSError`.

    Each link must belong to a trusted user, and each folder on the way must be writable for its owner alone or sticky.
    """
    for _ in range(_LINKS):
        folder = path.parent.stat()
        if folder.st_mode & _WRITABLE_BY_OTHERS and not folder.st_mode & stat.S_ISVTX:
            raise UnsafeFileError("other users can write to its folder; remove that with chmod go-w")
        try:
            status = path.lstat()
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(status.st_mode):
            return path
        if not _is_trusted(status, folder):
            raise UnsafeFileError("a link to it belongs to another user")
        path = path.parent / path.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def _is_trusted(status: os.stat_result, folder: os.stat_result) -> bool:
    return status.st_uid in {0, os.geteuid(), folder.st_uid}
