"""The spool: new tokens of refreshes that are not written yet, encrypted, in files that outlive the process.

Each file is named after the holder of the refresh's lease, a random UUID, and holds

    the SHA-256 digest of the rest in hexadecimal, and a line feed
    a `SpooledRefresh` as JSON

It appears complete or not at all: it is written under another name, flushed, and renamed. The process that wrote it
keeps a lock on it while it lives, by which other processes of the same directory know that it does not need them.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import stat
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final
from uuid import uuid4

import structlog

from app.private_file import UnsafeFileError, follow_private_links
from app.refresh.spooled_refresh import SpooledRefresh
from app.tokens.models import StoredToken, is_uuid

_KIND: Final = "refresh"
_DRAFT: Final = "draft"
_OLD_DRAFT_SECONDS: Final = 60.0  # a draft takes milliseconds
_MAXIMUM_BYTES: Final = 1024 * 1024  # two tokens of 16 384 characters take less than 200 KiB
_DISK_SECONDS: Final = 2.0  # a disk that hangs delays no refresh for longer
_PRIVATE: Final = 0o700
_READ: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FULL_DISK: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_log = structlog.get_logger()


class SpoolError(Exception):
    """What is wrong with the directory or with a file in it, without a content."""


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A file of the spool. If `is_abandoned`, the process that wrote it has ended, and this one has its lock."""

    path: Path
    file: BinaryIO
    content: bytes = field(repr=False)
    is_abandoned: bool

    def result(self) -> SpooledRefresh:
        """Return what it holds; raises `SpoolError` if it is damaged, or of another program."""
        digest, _, body = self.content.partition(b"\n")
        if len(self.content) > _MAXIMUM_BYTES or digest != _digest(body):
            raise SpoolError("it is damaged, or another program wrote it")
        try:
            result = SpooledRefresh.model_validate_json(body)
        except ValueError:
            raise SpoolError("another program or another version of the vault wrote it") from None
        if self.path.stem != result.holder:
            raise SpoolError("its name is not that of its refresh")
        return result


@dataclass(frozen=True, slots=True)
class SpoolContents:
    """The holders of the leases whose results are kept, the names of half-written files, and those of any others."""

    holders: list[str] = field(default_factory=list)
    drafts: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


class RefreshSpool:
    """The spool's directory, which the processes of one machine may share.

    A failure of its disk is reported and fails no refresh: without a crash the tokens are stored all the same.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def prepare(self) -> None:
        """Create the directory if it is missing; raises `SpoolError` or `OSError` if it cannot be used.

        A full disk does not count, because it may be freed later.
        """
        if not self._directory.exists():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _flush_folder(self._directory.parent)
        require_private(self._directory)
        probe = self._directory / f"{uuid4()}.{_DRAFT}"
        try:
            os.close(os.open(probe, _CREATE, 0o600))
            probe.unlink()
        except OSError as error:
            if error.errno not in _FULL_DISK:
                raise

    @asynccontextmanager
    async def kept(self, claimed: StoredToken, after: StoredToken, *, intent: str | None) -> AsyncIterator[None]:
        """Keep a result on disk before the block begins and until it ends; an error of the block leaves it there."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._write, claimed, after, intent))
        try:
            await _done_or_reported(writing)
            yield
        except BaseException:
            writing.add_done_callback(_close)
            raise
        await _done_or_reported(asyncio.ensure_future(_remove(writing)))

    def contents(self) -> SpoolContents:
        """Look at the names of the files; raises `OSError`."""
        found = SpoolContents()
        with os.scandir(self._directory) as entries:
            names = sorted(entry.name for entry in entries)
        for name in names:
            holder, _, kind = name.partition(".")
            if not is_uuid(holder) or kind not in {_KIND, _DRAFT}:
                found.foreign.append(name)
            elif kind == _KIND:
                found.holders.append(holder)
            else:
                found.drafts.append(name)
        return found

    def delete_old(self, drafts: Iterable[str]) -> None:
        """Delete what a crash has left of a write."""
        for name in drafts:
            with suppress(FileNotFoundError):
                path = self._directory / name
                if time.time() - path.lstat().st_mtime > _OLD_DRAFT_SECONDS:
                    path.unlink()

    @asynccontextmanager
    async def opened(self, holder: str) -> AsyncIterator[SpoolFile | None]:
        """Open the result of a refresh, `None` if there is none; raises `SpoolError` or `OSError`."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._open, holder))
        try:
            yield await asyncio.shield(opening)
        finally:
            opening.add_done_callback(_close)

    def _open(self, holder: str) -> SpoolFile | None:
        if not is_uuid(holder):  # it may come from a row, and is a part of a path
            return None
        path = self._directory / f"{holder}.{_KIND}"
        try:
            descriptor = os.open(path, _READ)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise SpoolError("it is not a regular file")
        file = os.fdopen(descriptor, "rb")
        return SpoolFile(path, file, file.read(_MAXIMUM_BYTES + 1), is_abandoned=_locks(file))

    def _write(self, claimed: StoredToken, after: StoredToken, intent: str | None) -> SpoolFile:
        result = SpooledRefresh.of(claimed, after, intent=intent)
        path, draft = (self._directory / f"{result.holder}.{kind}" for kind in (_KIND, _DRAFT))
        body = result.model_dump_json().encode()
        file = os.fdopen(os.open(draft, _CREATE, 0o600), "wb")
        try:
            _locks(file)
            content = _digest(body) + b"\n" + body
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            draft.rename(path)
            _flush_folder(self._directory)
        except BaseException:
            draft.unlink(missing_ok=True)
            file.close()
            raise
        return SpoolFile(path, file, content, is_abandoned=True)


def require_private(directory: Path) -> None:
    """Raise `SpoolError` unless this user alone can use the directory or replace it, or `OSError`."""
    try:
        status = follow_private_links(directory).stat()
    except UnsafeFileError as error:
        raise SpoolError(str(error)) from None
    if not stat.S_ISDIR(status.st_mode):
        raise SpoolError("it is not a directory")
    if status.st_uid != os.geteuid():
        raise SpoolError("it belongs to another user")
    if stat.S_IMODE(status.st_mode) & 0o777 != _PRIVATE:
        raise SpoolError("its permissions must be 0700: nobody else may use it")


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest().encode()


def _locks(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _flush_folder(folder: Path) -> None:
    """Bring the names of its files to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:  # a file system that cannot flush folders
            raise
    finally:
        os.close(descriptor)


async def _done_or_reported(work: asyncio.Future[Any]) -> None:
    """Wait some seconds for work on the disk, and report an error or that it takes longer."""
    await asyncio.wait([work], timeout=_DISK_SECONDS)
    if not work.done():
        _log.error("refresh_spool_failed", reason="the disk does not answer in time")
    elif (error := work.exception()) is not None:
        reason = error.strerror if isinstance(error, OSError) else type(error).__qualname__
        _log.error("refresh_spool_failed", reason=reason)


async def _remove(writing: asyncio.Future[SpoolFile]) -> None:
    try:
        file = await writing
    except (OSError, ValueError):  # reported
        return
    try:
        await asyncio.to_thread(file.path.unlink, missing_ok=True)
    finally:
        file.file.close()


def _close(opening: asyncio.Future[Any]) -> None:
    """End the lock of a file, and leave it."""
    if not opening.cancelled() and opening.exception() is None and opening.result() is not None:
        opening.result().file.close()
