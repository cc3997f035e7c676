"""Reading and editing the service-keys file. Edits are atomic, and safe against concurrent edits."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from app.callers.service_keys import KeyListError, ServiceKey, parse_key_list, render_key_list
from app.private_file import UnsafeFileError, follow_private_links, read_private_file

MAXIMUM_FILE_BYTES: Final = 1024 * 1024
Announce = Callable[[Sequence[ServiceKey]], None]
# O_NOFOLLOW because an edit, often root's, must not touch the file that a planted link names
_LOCK: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DRAFT: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class EditNotFlushedError(Exception):
    """The edit was made, but a power failure may undo it."""


def read_key_file(path: Path) -> list[ServiceKey]:
    """Return the keys, none if there is no file; raises `KeyListError` or `OSError`."""
    try:
        text = read_private(path)
    except FileNotFoundError:
        return []
    return parse_key_list(text)


def read_private(path: Path) -> bytes:
    """Return the content if trusted users alone can change it; raises `KeyListError` or `OSError`."""
    try:
        return read_private_file(path, maximum_bytes=MAXIMUM_FILE_BYTES)
    except UnsafeFileError as error:
        raise KeyListError(str(error)) from None


def add_key(path: Path, key: ServiceKey, *, announce: Announce = lambda _: None) -> None:
    """Append a key; a new file has mode 0600. Raises `KeyListError`, `EditNotFlushedError` or `OSError`.

    `announce` gets the key before the file is changed; if it raises, the file is not changed.
    """
    with _locked(path) as target:
        keys = read_key_file(target)
        announce([key])
        _write(target, [*keys, key])


def revoke_keys(
    path: Path, matches: Callable[[ServiceKey], bool], *, announce: Announce = lambda _: None
) -> list[ServiceKey]:
    """Remove and return the keys that match; raises `KeyListError`, `EditNotFlushedError` or `OSError`.

    `announce` gets these keys before the file is changed; if it raises, the file is not changed.
    """
    with _locked(path) as target:
        keys = read_key_file(target)
        removed = [key for key in keys if matches(key)]
        if removed:
            announce(removed)
            _write(target, [key for key in keys if not matches(key)])
    return removed


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Exclude other editors, by a lock on a file beside the one that `_write` replaces; yield the latter's path.

    Links are followed before, because editors may use different names of the same file.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    try:
        target = follow_private_links(path)
    except UnsafeFileError as error:
        raise KeyListError(str(error)) from None
    target = target.parent.resolve() / target.name
    descriptor = _open_lock(target.with_name(target.name + ".lock"))
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield target
    finally:
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    """Open the lock; a new one that root makes belongs to the folder's owner, who edits the file too.

    Raises `KeyListError` if an existing one belongs to another user, or `OSError`.
    """
    while True:
        try:
            descriptor = os.open(path, _LOCK | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            try:  # its owner stays: it may be a hard link to a file that must not be given away
                return os.open(path, _LOCK)
            except FileNotFoundError:  # removed meanwhile
                continue
            except PermissionError:
                raise KeyListError(
                    f"its lock {path} belongs to another user; give it to this one as root (chown {os.geteuid()} "
                    f"{path}), or remove it while no other command edits the keys"
                ) from None
        _give_to_owner_of_folder(descriptor, path.parent)
        return descriptor


def _give_to_owner_of_folder(descriptor: int, folder: Path) -> None:
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _write(path: Path, keys: list[ServiceKey]) -> None:
    """Replace the file in one step, so that a reader sees the old list or the new one."""
    before = path.stat() if path.exists() else None
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
    descriptor = os.open(draft, _DRAFT, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if before is None:
                _give_to_owner_of_folder(descriptor, path.parent)
            else:  # root's edit must leave the file readable by the vault's user
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, stat.S_IMODE(before.st_mode))
            file.write(render_key_list(keys))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def _flush_folder(folder: Path) -> None:
    """Bring the file's new name to disk; raises `EditNotFlushedError`."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # a file system that cannot flush folders
            raise EditNotFlushedError("the change was made, but a power failure may undo it") from None
