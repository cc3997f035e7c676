"""A chain in files of its own, one after the other."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from app.audit.chain_checkpoint import ChainCheckpoint, unnamed_chains
from app.audit.keys import AuditKey
from app.audit.log_files import LogFiles
from app.audit.target import WriteError

LOOK_SECONDS: Final = 0.1
# whoever may write in the directory could have put something in the draft's place
_DRAFT: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class FileCalls:
    """What brings bytes to disk, and takes them back: the calls that a disk fails, and whose doing nobody can see."""

    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


SYSTEM_CALLS: Final = FileCalls()


class FileTarget:
    """`AuditTarget` as the files of a family, each of about `maximum_bytes` and locked while it is written.

    What could not be written whole is cut off again, and where that is not possible either the chain goes on in the
    next file. So it does where the file was deleted, moved away or changed by somebody else, which is looked at every
    `LOOK_SECONDS`: what is missing then, `verify` finds. Without `flushing` only the kernel brings anything to disk.
    """

    def __init__(
        self, *, family: LogFiles, chain: str, maximum_bytes: int, flushing: bool, system: FileCalls = SYSTEM_CALLS
    ) -> None:
        self._family = family
        self._chain = chain
        self._maximum_bytes = maximum_bytes
        self._flushing = flushing
        self._system = system
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._number = 0
        self._size = 0
        self._look_again_at = 0.0

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
        try:
            self._family.make_directory()
            # a first attempt that failed has maybe left a file of our own, which nobody holds
            return [one for one in unnamed_chains(self._family, keys=keys) if one.chain != self._chain]
        except OSError as error:
            raise WriteError(_name(error)) from None

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        data = b"".join([line + b"\n" for line in lines])
        try:
            descriptor = self._writable(len(data))
        except OSError as error:
            raise WriteError(_name(error)) from None
        before = self._size
        try:
            self._write(descriptor, data)
            if durably:
                self._system.fdatasync(descriptor)
        except OSError as error:
            kept = data[: self._size - before]
            raise WriteError(_name(error), kept=self._cut_back(descriptor, before, kept)) from None

    def flush(self) -> None:
        if self._descriptor is not None and self._flushing:
            try:
                self._system.fdatasync(self._descriptor)
            except OSError as error:
                raise WriteError(_name(error)) from None

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)  # and with it the lock

    def _writable(self, size: int) -> int:
        """Return the descriptor of a file that is ours and has room, a new one if need be."""
        if self._descriptor is not None and self._is_ours(self._descriptor):
            if self._size == 0 or self._size + size <= self._maximum_bytes:
                return self._descriptor
            if self._flushing:
                self._system.fdatasync(self._descriptor)
        following = self._open_next()
        self.close()  # after the next one is locked, so that the chain never looks dead
        self._descriptor, self._size = following, 0
        return following

    def _is_ours(self, descriptor: int) -> bool:
        """Look now and then whether the file is still there and as we left it."""
        if self._path is None:  # given up
            return False
        now = time.monotonic()
        if now < self._look_again_at:
            return True
        self._look_again_at = now + LOOK_SECONDS
        try:
            there = self._path.stat()
        except FileNotFoundError:
            return False
        ours = os.fstat(descriptor)
        return (there.st_dev, there.st_ino, there.st_size) == (ours.st_dev, ours.st_ino, self._size)

    def _open_next(self) -> int:
        """Create the chain's next file, locked before it has its name, readable by its owner alone."""
        self._family.make_directory()
        path = self._family.file(self._chain, self._number + 1)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        descriptor = os.open(draft, _DRAFT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            draft.rename(path)
            if self._flushing:
                self._flush_directory()
        except OSError:
            os.close(descriptor)
            draft.unlink(missing_ok=True)
            raise
        self._number += 1
        self._path = path
        return descriptor

    def _flush_directory(self) -> None:
        descriptor = os.open(self._family.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._system.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _write(self, descriptor: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            written = os.write(descriptor, view)
            self._size += written
            view = view[written:]

    def _cut_back(self, descriptor: int, size: int, kept: bytes) -> int:
        """Undo a write; return how many whole lines of it stand there after all."""
        try:
            self._system.ftruncate(descriptor, size)
        except OSError:
            self._path = None  # a line may be torn: nothing may follow it in this file
            return kept.count(b"\n")
        self._size = size
        return 0


def _name(error: OSError) -> str:
    """Return the error's name; its text may hold a path."""
    return errno.errorcode.get(error.errno or 0, "EIO")
