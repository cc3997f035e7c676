"""Targets of audit lines: a chain's own files, or a stream."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from app.audit.chain_checkpoint import ChainCheckpoint, unnamed_chains
from app.audit.log_files import LogFiles
from app.audit.signing_key import AuditKey

FILE_CHECK_SECONDS: Final = 0.1
STANDARD_OUTPUT: Final = 1
STANDARD_ERROR: Final = 2
_ATOMIC_BYTES: Final = 4096  # PIPE_BUF of Linux: workers share the pipe, and such writes do not interleave
# O_EXCL and O_NOFOLLOW because another user with write access to the directory could place a file or link there first
_DRAFT: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# without O_NONBLOCK, opening a FIFO waits for a reader
_STREAM: Final = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


class WriteError(Exception):
    """A write that failed. `reason` is the errno's name; `kept` lines were written completely and stay."""

    def __init__(self, error: OSError, *, kept: int = 0) -> None:
        self.reason = errno.errorcode.get(error.errno or 0, "EIO")  # the error's text may hold a path
        super().__init__(self.reason)
        self.kept = kept


class AuditTarget(Protocol):
    """Takes the lines of one chain from one thread. Each method may block, and raises `WriteError`."""

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
        """Return checkpoints of the other chains that this chain's start must name."""
        ...

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        """Write the lines, each with a line feed; if `durably`, return once they are on disk."""
        ...

    def flush(self) -> None:
        """Bring everything that was written to disk."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DiskCalls:
    """The system calls that bring bytes to disk or undo a write; tests replace them to observe or fail them."""

    fdatasync: Callable[[int], None] = os.fdatasync
    fsync: Callable[[int], None] = os.fsync
    ftruncate: Callable[[int, int], None] = os.ftruncate


SYSTEM_CALLS: Final = DiskCalls()


class FileTarget:
    """Writes a chain to its own files, each of about `maximum_bytes` and locked while it is written.

    An incomplete write is cut off again; if that fails too, the chain continues in the next file. It also continues
    there if somebody deleted, moved or changed the file, which is checked every `FILE_CHECK_SECONDS`; `verify` reports
    the missing lines. Without `flushing`, only the kernel brings bytes to disk.
    """

    def __init__(
        self, *, log_files: LogFiles, chain: str, maximum_bytes: int, flushing: bool, system: DiskCalls = SYSTEM_CALLS
    ) -> None:
        self._log_files = log_files
        self._chain = chain
        self._maximum_bytes = maximum_bytes
        self._flushing = flushing
        self._system = system
        self._descriptor: int | None = None
        self._path: Path | None = None
        self._number = 0
        self._size = 0
        self._check_file_at = 0.0

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:
        try:
            self._log_files.make_directory()
            # a start that failed may have left a file of this chain, which is not locked
            return [one for one in unnamed_chains(self._log_files, keys=keys) if one.chain != self._chain]
        except OSError as error:
            raise WriteError(error) from None

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        data = b"".join([line + b"\n" for line in lines])
        try:
            descriptor = self._writable(len(data))
        except OSError as error:
            raise WriteError(error) from None
        before = self._size
        try:
            self._write(descriptor, data)
            if durably:
                self._system.fdatasync(descriptor)
        except OSError as error:
            written = data[: self._size - before]
            raise WriteError(error, kept=self._cut_back(descriptor, before, written)) from None

    def flush(self) -> None:
        if self._descriptor is not None and self._flushing:
            try:
                self._system.fdatasync(self._descriptor)
            except OSError as error:
                raise WriteError(error) from None

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)  # also releases the lock

    def _writable(self, size: int) -> int:
        """Return the descriptor of a file with space for `size` bytes, opening the next file if necessary."""
        if self._descriptor is not None and self._is_unchanged(self._descriptor):
            if self._size == 0 or self._size + size <= self._maximum_bytes:
                return self._descriptor
            if self._flushing:
                self._system.fdatasync(self._descriptor)
        following = self._open_next()
        self.close()  # after the next file is locked, so that the chain never looks dead
        self._descriptor, self._size = following, 0
        return following

    def _is_unchanged(self, descriptor: int) -> bool:
        """Whether the file is still at its path with the size that was written; checked at most every 0.1 s."""
        if self._path is None:  # abandoned after a failed cut
            return False
        now = time.monotonic()
        if now < self._check_file_at:
            return True
        self._check_file_at = now + FILE_CHECK_SECONDS
        try:
            at_path = self._path.stat()
        except FileNotFoundError:
            return False
        opened = os.fstat(descriptor)
        return (at_path.st_dev, at_path.st_ino, at_path.st_size) == (opened.st_dev, opened.st_ino, self._size)

    def _open_next(self) -> int:
        """Create the chain's next file, readable by its owner alone; it is locked before it gets its name.

        Root's file belongs to the directory's owner: the vault reads every chain at its start.
        """
        self._log_files.make_directory()
        path = self._log_files.file(self._chain, self._number + 1)
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.new")
        descriptor = os.open(draft, _DRAFT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.geteuid() == 0:
                owner = self._log_files.directory.stat()
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
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
        descriptor = os.open(self._log_files.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
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

    def _cut_back(self, descriptor: int, size: int, written: bytes) -> int:
        """Cut the file back to `size`; return how many complete lines of `written` remain."""
        try:
            self._system.ftruncate(descriptor, size)
        except OSError:
            self._path = None  # the file may end with half a line, which no line may follow
            return written.count(b"\n")
        self._size = size
        return 0


class StreamTarget:
    """Writes a chain to standard output or error, a FIFO or a device, among other lines.

    A write is never undone. A flush reaches the disk only if the stream is a file.
    """

    def __init__(self, *, path: Path | None, standard: int = STANDARD_OUTPUT) -> None:
        """`path` is a FIFO or a device; `None` is the standard stream with this descriptor."""
        self._path = path
        self._standard = standard
        self._descriptor: int | None = None
        self._torn = False

    def unnamed_chains(self, keys: Sequence[AuditKey]) -> list[ChainCheckpoint]:  # noqa: ARG002  a stream cannot be read back
        return []

    def append(self, lines: Sequence[bytes], *, durably: bool) -> None:
        kept = 0
        try:
            descriptor = self._opened()
            for group in _atomic_groups(lines):
                data = b"".join([line + b"\n" for line in group])
                for start, end in self._written(descriptor, data):
                    kept += data.count(b"\n", start, end)
            if durably:
                _flush_if_file(descriptor)
        except OSError as error:
            self.close()
            raise WriteError(error, kept=kept) from None

    def flush(self) -> None:
        if self._descriptor is not None:
            try:
                _flush_if_file(self._descriptor)
            except OSError as error:
                raise WriteError(error) from None

    def close(self) -> None:
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            with suppress(OSError):
                os.close(descriptor)

    def _opened(self) -> int:
        if self._descriptor is None:
            if self._path is None:
                self._descriptor = os.dup(self._standard)
            else:
                self._descriptor = os.open(self._path, _STREAM)
                os.set_blocking(self._descriptor, True)
        return self._descriptor

    def _written(self, descriptor: int, data: bytes) -> Iterator[tuple[int, int]]:
        """Write all bytes; yield the range of each partial write, because the next one may fail."""
        if self._torn:
            os.write(descriptor, b"\n")
            self._torn = False
        start = 0
        while start < len(data):
            end = start + os.write(descriptor, memoryview(data)[start:])
            self._torn = end < len(data) and data[end - 1 : end] != b"\n"
            yield start, end
            start = end


def is_stream(audit_log: str) -> bool:
    """Whether AUDIT_LOG names standard output (`-`), or an existing FIFO or device."""
    if audit_log == "-":
        return True
    try:
        mode = Path(audit_log).stat().st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _flush_if_file(descriptor: int) -> None:
    try:
        os.fdatasync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.EROFS, errno.ENOTSUP}:  # a pipe has no disk
            raise


def _atomic_groups(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Group lines, so that one write of a group does not interleave with those of other processes."""
    groups: list[list[bytes]] = [[]]
    size = 0
    for line in lines:
        if groups[-1] and size + len(line) + 1 > _ATOMIC_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(line)
        size += len(line) + 1
    return groups
