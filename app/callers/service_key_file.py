"""Reading and editing the service-keys file. Edits are atomic, and safe against concurrent edits."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from app.callers.service_keys import KeyListError, ServiceKey, parse_key_list, render_key_list

MAXIMUM_FILE_BYTES: Final = 1024 * 1024
_WRITABLE_BY_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH
# without O_NONBLOCK, opening a FIFO waits for a writer
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
# O_NOFOLLOW because an edit, often root's, must not touch the file that a planted link names
_LOCK: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DRAFT: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def read_key_file(path: Path) -> list[ServiceKey]:
    """Return the keys, none if there is no file; raises `KeyListError` or `OSError`."""
    try:
        text = read_private(path)
    except FileNotFoundError:
        return []
    return parse_key_list(text)


def read_private(path: Path) -> bytes:
    """Return the content of a regular file of at most 1 MiB that its owner and root alone can change.

    Raises `KeyListError` if the group or all users may write to the file, or may replace it because they may write to
    its folder or to the folder of a link to it, or `OSError`. In a sticky folder, such as the one of a Kubernetes
    secret, nobody else can replace it.
    """
    _require_private_folder(path.parent)
    _require_private_folder(Path(os.path.realpath(path)).parent)  # resolve() raises RuntimeError for a loop of links
    descriptor = os.open(path, _READ)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise KeyListError("it is not a regular file")
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise KeyListError("other users can write to the file; remove that with chmod go-w")
        if status.st_size > MAXIMUM_FILE_BYTES:
            raise KeyListError("the file is over 1 MiB")
        return file.read()


def add_key(path: Path, key: ServiceKey) -> None:
    """Append a key; a new file has mode 0600. Raises `KeyListError` or `OSError`."""
    with _locked(path):
        _write(path, [*read_key_file(path), key])


def revoke_keys(path: Path, matches: Callable[[ServiceKey], bool]) -> list[ServiceKey]:
    """Remove and return the keys that match; raises `KeyListError` or `OSError`."""
    with _locked(path):
        keys = read_key_file(path)
        _write(path, [key for key in keys if not matches(key)])
    return [key for key in keys if matches(key)]


def _require_private_folder(folder: Path) -> None:
    mode = folder.stat().st_mode
    if mode & _WRITABLE_BY_OTHERS and not mode & stat.S_ISVTX:
        raise KeyListError("other users can write to its folder; remove that with chmod go-w")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Exclude other editors, by a lock on a file beside this one, which `_write` replaces."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path.with_name(path.name + ".lock"), _LOCK, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(path: Path, keys: list[ServiceKey]) -> None:
    """Replace the file in one step, so that a reader sees the old list or the new one."""
    path = path.resolve()  # the target of a link is replaced, not the link
    before = path.stat() if path.exists() else None
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    descriptor = os.open(draft, _DRAFT, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if before is not None:  # root's edit must leave the file readable by the vault's user
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(render_key_list(keys))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
