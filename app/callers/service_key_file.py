"""Edits of the service-keys file: atomic, and safe against concurrent edits."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.callers.service_keys import ServiceKey, parse_key_list, render_key_list


def read_key_file(path: Path) -> list[ServiceKey]:
    """Return the keys, none if there is no file; raises `KeyListError` or `OSError`."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_key_list(text)


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
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, keys: list[ServiceKey]) -> None:
    """Replace the file in one step, so that a reader sees the old list or the new one."""
    path = path.resolve()  # the target of a link is replaced, not the link
    before = path.stat() if path.exists() else None
    mode = before.st_mode & 0o777 if before else 0o600
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            if before is not None:  # root's edit must leave the file readable by the vault's user
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, mode)
            file.write(render_key_list(keys))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
