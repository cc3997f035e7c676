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
from app.private_file import UnsafeFileError, read_private_file

MAXIMUM_FILE_BYTES: Final = 1024 * 1024
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
    """Return the content if its owner and root alone can change it; raises `KeyListError` or `OSError`."""
    try:
        return read_private_file(path, maximum_bytes=MAXIMUM_FILE_BYTES)
    except UnsafeFileError as error:
        raise KeyListError(str(error)) from None


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
