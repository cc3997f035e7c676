"""Editing the service-keys file: each change is atomic, and two editors at once lose nothing."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.callers.service_keys import KeyListError, ServiceKey, parse_key_list, render_key_list


def read_key_file(path: Path) -> list[ServiceKey]:
    """Return the file's keys, none where there is no file; raises `KeyListError` or `OSError`."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return []
    return parse_key_list(text)


def add_key(path: Path, key: ServiceKey) -> None:
    """Append a key, creating the file with mode 0600; raises `KeyListError` or `OSError`."""
    with _edited(path) as edit:
        edit(lambda keys: [*keys, key])


def revoke_keys(path: Path, doomed: Callable[[ServiceKey], bool]) -> list[ServiceKey]:
    """Remove every key that `doomed` names, and return them; raises `KeyListError` or `OSError`."""
    removed: list[ServiceKey] = []
    with _edited(path) as edit:

        def without(keys: list[ServiceKey]) -> list[ServiceKey]:
            removed.extend(key for key in keys if doomed(key))
            return [key for key in keys if not doomed(key)]

        edit(without)
    return removed


@contextmanager
def _edited(path: Path) -> Iterator[Callable[[Callable[[list[ServiceKey]], list[ServiceKey]]], None]]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def edit(change: Callable[[list[ServiceKey]], list[ServiceKey]]) -> None:
            _write_atomically(path, render_key_list(change(read_key_file(path))))

        yield edit


def _write_atomically(path: Path, text: str) -> None:
    """Replace the file whole, so that a reader sees the old list or the new one and never half of one."""
    path = path.resolve()  # a link stays a link
    before = path.stat() if path.exists() else None
    mode = before.st_mode & 0o777 if before else 0o600
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            if before is not None:  # an administrator's edit must not take the file from the vault's user
                os.fchown(descriptor, before.st_uid, before.st_gid)
                os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


__all__ = ["KeyListError", "add_key", "read_key_file", "revoke_keys"]
